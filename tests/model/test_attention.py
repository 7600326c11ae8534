"""Attention, resampler and gated block against independent computations."""

import pytest
import torch
import torch.nn.functional as F

from flamingo.choices import Activation, Gate, Norm, ResamplerKind
from flamingo.config import CrossAttentionConfig, ResamplerConfig
from flamingo.model.attention import FeedForward, GatedFeedForward, attend
from flamingo.model.cross_attention import GatedCrossAttentionBlock
from flamingo.model.reading import AllMedia, OwnMedium
from flamingo.model.resampler import PerceiverResampler, build_resampler


def test_attention_equals_the_kernel_of_torch_with_and_without_a_mask():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    mask = torch.rand(2, 1, 5, 7) > 0.3
    mask[..., 0] = True
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(
        attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    )


def test_a_query_that_may_attend_to_nothing_gets_zeros_and_a_finite_gradient():
    q, k, v = (torch.randn(1, 1, 3, 4, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]).bool()[None, None]
    out = attend(q, k, v, mask)
    assert out[0, 0, 1].tolist() == [0, 0, 0, 0]
    assert out[0, 0, 0].abs().sum() > 0
    out.sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (q, k, v))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("squared_relu", 4.0), ("gelu", 1.9545), ("relu", 2.0), ("silu", 1.7616)],
)
def test_feed_forward_activations(activation: str, expected: float):
    block = FeedForward(4, 2, Activation(activation))
    value = block[2](torch.tensor([2.0, -0.0]))
    assert value[0].item() == pytest.approx(expected, abs=1e-4)
    assert value[1].item() == 0


def test_a_gated_feed_forward_multiplies_its_two_halves():
    torch.manual_seed(0)
    block = GatedFeedForward(6, 5, Activation.relu, Norm.rms, norm_eps=0.3)
    x = torch.randn(2, 6)
    normed = x / (x.square().mean(dim=-1, keepdim=True) + 0.3).sqrt()
    gate, up = normed @ block.gate.weight.T, normed @ block.up.weight.T
    torch.testing.assert_close(block(x), (gate.clamp(min=0) * up) @ block.down.weight.T)


def test_without_a_resampler_the_latents_are_the_standardised_tokens():
    identity = build_resampler(6, ResamplerConfig(kind=ResamplerKind.identity))
    assert list(identity.parameters()) == []
    images = torch.randn(3, 1, 5, 6)
    assert torch.equal(identity(images), images[:, 0])
    identity.set_feature_statistics(torch.full((6,), 2.0), torch.full((6,), 4.0))
    torch.testing.assert_close(identity(images), (images[:, 0] - 2) / 4)
    with pytest.raises(ValueError, match="frames of a medium: expected 1 .*, got 2"):
        identity(torch.randn(3, 2, 5, 6))


def test_the_mlp_resampler_gives_each_token_what_it_would_get_alone():
    torch.manual_seed(0)
    mlp = build_resampler(6, ResamplerConfig(kind=ResamplerKind.mlp, depth=2))
    images = torch.randn(3, 1, 5, 6)
    latents = mlp(images)
    assert latents.shape == (3, 5, 6)
    torch.testing.assert_close(mlp(images[:, :, 3:4])[:, 0], latents[:, 3])
    first, second = (layer.feed_forward for layer in mlp.layers)
    x = images[:, 0]
    x = x + first(x)
    torch.testing.assert_close(latents, mlp.norm(x + second(x)))
    with pytest.raises(ValueError, match="frames of a medium: expected 1 .*kind=mlp.*, got 2"):
        mlp(torch.randn(3, 2, 5, 6))


def test_the_pooling_resampler_reads_the_mean_of_all_tokens_alone():
    torch.manual_seed(0)
    pooling = build_resampler(6, ResamplerConfig(kind=ResamplerKind.pooling, num_latents=4))
    clips = torch.randn(3, 2, 5, 6)
    latents = pooling(clips)
    assert latents.shape == (3, 4, 6)
    mean = clips.mean(dim=(1, 2))[:, None, None]
    torch.testing.assert_close(pooling(mean), latents)
    pooled = pooling.to_latents(pooling.norm_media(mean[:, 0, 0]))
    torch.testing.assert_close(latents[:, 1], pooling.norm(pooled[:, 6:12]))


def test_resampler_gives_a_fixed_number_of_latents_for_images_and_clips():
    resampler = PerceiverResampler(24, ResamplerConfig(depth=2, num_latents=5, heads=2, dim_head=8))
    assert resampler(torch.randn(3, 1, 9, 24)).shape == (3, 5, 24)
    assert resampler(torch.randn(2, 4, 16, 24)).shape == (2, 5, 24)


def test_resampler_ignores_patch_order_but_not_frame_order_once_frames_have_embeddings():
    torch.manual_seed(0)
    resampler = PerceiverResampler(8, ResamplerConfig(depth=1, num_latents=2, heads=2, dim_head=4))
    clip = torch.randn(1, 3, 5, 8)
    torch.testing.assert_close(resampler(clip), resampler(clip[:, :, [4, 2, 0, 1, 3]]))
    torch.testing.assert_close(resampler(clip), resampler(clip.flip(1)))
    torch.nn.init.normal_(resampler.frame_embeddings)
    assert (resampler(clip) - resampler(clip.flip(1))).abs().max() > 1e-3


def test_a_clip_longer_than_the_frame_table_is_an_error():
    resampler = PerceiverResampler(8, ResamplerConfig(depth=1, num_latents=2, max_frames=2))
    with pytest.raises(ValueError, match="max_frames = 2, got 3"):
        resampler(torch.randn(1, 3, 5, 8))


def test_feature_statistics_standardise_and_live_in_the_state_dict():
    torch.manual_seed(0)
    resampler = PerceiverResampler(8, ResamplerConfig(depth=1, num_latents=2))
    plain = torch.randn(2, 1, 5, 8)
    expected = resampler(plain)
    mean, std = torch.randn(8), torch.rand(8) + 0.5
    resampler.set_feature_statistics(mean, std)
    torch.testing.assert_close(resampler(plain * std + mean), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(resampler.state_dict()["feature_mean"], mean)
    with pytest.raises(ValueError, match="positive deviations"):
        resampler.set_feature_statistics(mean, torch.zeros(8))


def block(gate: float) -> GatedCrossAttentionBlock:
    torch.manual_seed(0)
    return GatedCrossAttentionBlock(
        16, 24, CrossAttentionConfig(heads=2, dim_head=8, gate_init=gate)
    )


def test_closed_gates_pass_the_stream_bit_for_bit_in_both_dtypes():
    for dtype in (torch.float32, torch.bfloat16):
        text = torch.randn(2, 5, 16).to(dtype)
        media, reading = (
            torch.randn(2, 2, 2, 3, 8),
            OwnMedium.of(torch.tensor([[0] * 5, [1] * 5]), 2),
        )
        out = block(0.0)(text, media, reading)
        assert out.dtype == dtype
        assert torch.equal(out, text)


def test_a_token_without_media_still_passes_the_gated_feed_forward():
    gated = block(0.5)
    text = torch.randn(1, 4, 16)
    media = torch.randn(2, 1, 2, 3, 8)
    nobody, unseen = torch.full((1, 4), -1), torch.zeros(1, 4, 1).bool()
    expected = text + torch.tanh(torch.tensor(0.5)) * gated.feed_forward(text)
    torch.testing.assert_close(gated(text, media, OwnMedium.of(nobody, 1)), expected)
    all_media = AllMedia(torch.tensor([[0]]), unseen)
    torch.testing.assert_close(gated(text, media, all_media), expected)
    torch.testing.assert_close(gated(text, None, None), expected)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("own", ["some", "all", "first", "none"])
def test_reading_ones_own_medium_is_attention_over_all_media_under_a_mask(own: str, beams: int):
    """Two prompts with 3 and 2 media (one of them read by nobody), against every token compared
    with every latent, and the mask; values and gradients."""
    rows = 2 * beams
    medium = torch.randint(0, 2, (rows, 7)) + 3 * (torch.arange(rows) // beams)[:, None]
    if own == "some":
        medium[:, :3] = -1
    elif own == "first":
        medium[1:] = -1
        medium[0] = 0
    elif own == "none":
        medium[:] = -1
    query = torch.randn(rows, 7, 2, 8, requires_grad=True)
    media = torch.randn(2, 5, 2, 4, 8, requires_grad=True)
    out = OwnMedium.of(medium, 5).attend(query, media)
    key, value = (x.transpose(0, 1).flatten(1, 2).expand(rows, -1, -1, -1) for x in media)
    sees = (medium[:, :, None] == torch.arange(5)).repeat_interleave(4, dim=2)
    masked = attend(query.transpose(1, 2), key, value, sees[:, None]).transpose(1, 2)
    torch.testing.assert_close(out, masked)
    weight = torch.randn_like(out)
    if own != "none":
        gradients = torch.autograd.grad((out * weight).sum(), (query, media))
        expected = torch.autograd.grad((masked * weight).sum(), (query, media))
        torch.testing.assert_close(gradients, expected)


def test_beams_of_one_prompt_share_its_media_without_copies():
    gated = block(0.5)
    text = torch.randn(6, 4, 16)  # two prompts of three beams
    media = torch.randn(2, 3, 2, 3, 8)
    mask = torch.rand(6, 4, 2) > 0.4
    shared = AllMedia(torch.tensor([[0, 1], [2, 0]]), mask)
    each = torch.tensor([[0, 1], [2, 0]]).repeat_interleave(3, dim=0)
    repeated = gated(text, media, AllMedia(each, mask))
    torch.testing.assert_close(gated(text, media, shared), repeated)


def test_the_initial_scales_multiply_what_each_branch_adds():
    torch.manual_seed(0)
    plain = GatedCrossAttentionBlock(16, 24, CrossAttentionConfig(heads=2, dim_head=8))
    torch.manual_seed(0)
    scaled = GatedCrossAttentionBlock(
        16,
        24,
        CrossAttentionConfig(
            heads=2, dim_head=8, attention_init_scale=6.0, feed_forward_init_scale=0.0
        ),
    )
    text, media = torch.randn(1, 4, 16), torch.randn(2, 1, 2, 3, 8)
    reading = OwnMedium.of(torch.zeros(1, 4, dtype=torch.long), 1)
    torch.testing.assert_close(
        scaled.attention(text, media, reading), 6 * plain.attention(text, media, reading)
    )
    assert scaled.feed_forward(text).abs().max() == 0
    with pytest.raises(ValueError, match="attention_init_scale: expected >= 0"):
        CrossAttentionConfig(attention_init_scale=-1.0)


def test_a_gate_of_each_channel_opens_that_channel_alone():
    torch.manual_seed(0)
    gated = GatedCrossAttentionBlock(
        16, 24, CrossAttentionConfig(heads=2, dim_head=8, gate=Gate.channel)
    )
    assert gated.attention_gate.shape == gated.feed_forward_gate.shape == (16,)
    torch.nn.init.constant_(gated.feed_forward_gate[3:5], 2.0)
    text = torch.randn(1, 4, 16)
    moved = (gated(text, None, None) != text).any(dim=(0, 1))
    assert moved.nonzero().flatten().tolist() == [3, 4]


def test_without_gates_both_branches_are_added_as_they_are():
    torch.manual_seed(0)
    options = CrossAttentionConfig(heads=2, dim_head=8, gate=Gate.none)
    block = GatedCrossAttentionBlock(16, 24, options)
    assert not [name for name, _ in block.named_parameters() if "gate" in name]
    text, media = torch.randn(1, 4, 16), torch.randn(2, 1, 2, 3, 8)
    reading = OwnMedium.of(torch.zeros(1, 4, dtype=torch.long), 1)
    attended = text + block.attention(text, media, reading)
    expected = attended + block.feed_forward(attended)
    torch.testing.assert_close(block(text, media, reading), expected)


def test_normed_keys_are_of_one_length_whatever_that_of_the_media():
    torch.manual_seed(0)
    options = CrossAttentionConfig(
        heads=2, dim_head=8, gate_init=1.0, qk_norm=True, norm=Norm.rms, norm_eps=1e-12
    )
    block = GatedCrossAttentionBlock(16, 24, options)
    latents = torch.randn(1, 5, 24)
    keys = block.project_media(latents)[0]
    longer = block.project_media(3 * latents)[0]
    torch.testing.assert_close(keys.square().mean(dim=-1), torch.ones(1, 2, 5))
    torch.testing.assert_close(longer, keys)
