"""Attention maps against a computation by hand, and against what the model itself computes."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from flamingo import FlamingoForConditionalGeneration
from flamingo.choices import MediaVisibility, ResamplerKind
from flamingo.config import CrossAttentionConfig, ResamplerConfig
from flamingo.model.attention_maps import AttentionMaps, attention_maps
from flamingo.testing import tiny_language_model, tiny_vision_encoder
from tests.model.conftest import VISION_DIM, features, prompt


def one_block(
    kind: ResamplerKind = ResamplerKind.perceiver, *, depth: int = 1, qk_norm: bool = False
) -> Any:
    """A block before the very first layer: it reads the embeddings of the tokens."""
    torch.manual_seed(0)
    return FlamingoForConditionalGeneration.from_backbones(
        None,
        tiny_language_model("llama"),
        vision_dim=VISION_DIM,
        resampler=ResamplerConfig(kind=kind, depth=depth, num_latents=3, heads=2, dim_head=4),
        cross_attention=CrossAttentionConfig(
            every=None, layers=[0], heads=2, dim_head=8, gate_init=0.5, qk_norm=qk_norm
        ),
    ).eval()


def by_hand(model: Any, ids: torch.Tensor, media: torch.Tensor):
    """Both attentions of a model of :func:`one_block`, depth 1, number by number.

    Gives the latents' weights over patches, ``image head latent patch``, and a function from a
    token and an image to its weights, ``head latent``.
    """
    layer = model.resampler.layers[0]
    attention = layer.attention
    learned = model.resampler.latents
    origins = torch.zeros(len(media), 2, 3, media.shape[-2])
    for m, image in enumerate(media[:, 0]):
        x = attention.norm_media(image + model.resampler.frame_embeddings[0])
        z = attention.norm_latents(learned)
        queries = attention.to_q(z)
        keys = attention.to_kv(torch.cat([x, z]))[:, :8]
        for head in range(2):
            for latent in range(3):
                q = queries[latent, 4 * head : 4 * head + 4]
                scores = torch.stack([q.dot(k[4 * head : 4 * head + 4]) / 2 for k in keys])
                origins[m, head, latent] = (scores.exp() / scores.exp().sum())[: len(x)]
    latents = model.resampler(media)
    block = model.cross_attention["0"].attention
    text = model.new_tokens(ids, model.language_model.get_input_embeddings())[0]

    def weights(token: int, image: int) -> torch.Tensor:
        q, k = block.to_q(block.norm(text[token])), block.to_kv(latents[image])[:, :16]
        rows = []
        for head in range(2):
            own = slice(8 * head, 8 * head + 8)
            scores = torch.stack([q[own].dot(key[own]) / 8**0.5 for key in k])
            rows.append(scores.exp() / scores.exp().sum())
        return torch.stack(rows)

    return origins, weights


@torch.no_grad()
def test_weights_and_maps_are_those_of_a_computation_by_hand():
    model = one_block()
    ids = prompt(model, 9, [1, 5], seed=0)
    media = features(1, 2)
    maps = attention_maps(model, ids, tokens=[2, 8], vision_features=media)
    origins, weights = by_hand(model, ids, media[0])
    assert (maps.tokens, maps.media, maps.layers) == ((2, 8), (0, 1), (0,))
    assert maps.weights.shape == (2, 1, 2, 2, 3)  # token, layer, head, medium, latent
    for row, (token, image) in enumerate([(2, 0), (8, 1)]):
        expected = weights(token, image)
        torch.testing.assert_close(maps.weights[row, 0, :, image], expected)
        assert maps.weights[row, 0, :, 1 - image].abs().max() == 0
        patches = torch.zeros(9)
        for latent in range(3):
            patches += expected[:, latent].mean() * origins[image, :, latent].mean(dim=0)
        torch.testing.assert_close(maps.over_patches(token), patches.view(1, 3, 3))


@torch.no_grad()
@pytest.mark.parametrize("media_seen", list(MediaVisibility), ids=lambda choice: choice.name)
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_the_weights_times_the_values_are_what_every_block_adds(build, media_seen, family):
    model = build(family, media=media_seen)
    ids = prompt(model, 12, [1, 6], seed=1)
    media = features(1, 3)  # one of them is padding
    got: dict[str, torch.Tensor] = {}
    handles = [
        block.attention.register_forward_hook(
            lambda module, args, out, name=name: got.update({name: out[0]})
        )
        for name, block in model.cross_attention.items()
    ]
    model(ids, vision_features=media)
    for handle in handles:
        handle.remove()
    tokens = [1, 5, 6, 11]
    maps = attention_maps(model, ids, tokens=tokens, vision_features=media)
    assert maps.layers == (1, 3)
    latents = model.encode_media(vision_features=media[:, :2])[0]
    for place, layer in enumerate(maps.layers):
        attention = model.cross_attention[str(layer)].attention
        values = attention.keys_values(latents)[1]
        read = torch.einsum("thml,mhld->thd", maps.weights[:, place], values)
        torch.testing.assert_close(attention.to_out(read.flatten(1)), got[str(layer)][tokens])


@torch.no_grad()
def test_with_all_previous_media_the_weights_sum_to_one_over_all_that_a_token_sees(build):
    model = build(media=MediaVisibility.all_previous)
    ids = prompt(model, 12, [1, 6], seed=1)
    maps = attention_maps(model, ids, tokens=[3, 9], vision_features=features(1, 2))
    torch.testing.assert_close(maps.weights.sum(dim=(-1, -2)), torch.ones(2, 2, 2))
    assert maps.weights[0, :, :, 1].abs().max() == 0 and maps.weights[1].min() > 0
    whole = maps.over_patches(9, medium=0) + maps.over_patches(9)
    assert whole.sum(dim=(-1, -2)).max() <= 1 and maps.over_patches(9, medium=0).min() > 0


@torch.no_grad()
def test_queries_and_keys_that_are_normed_give_other_weights():
    plain, normed = (one_block(qk_norm=on) for on in (False, True))
    normed.load_state_dict(plain.state_dict(), strict=False)
    ids, media = prompt(plain, 5, [0], seed=0), features(1, 1)
    maps = [attention_maps(m, ids, tokens=[4], vision_features=media) for m in (plain, normed)]
    assert not torch.allclose(maps[0].weights, maps[1].weights)


@torch.no_grad()
@pytest.mark.parametrize("kind", [ResamplerKind.mlp, ResamplerKind.identity])
def test_without_resampling_a_latent_is_its_own_patch(kind):
    model = one_block(kind)
    ids = prompt(model, 5, [0], seed=0)
    maps = attention_maps(model, ids, tokens=[4], vision_features=features(1, 1))
    expected = maps.weights[0, :, :, 0].mean(dim=1).view(1, 3, 3)
    torch.testing.assert_close(maps.over_patches(4), expected)
    assert maps.over_patches(4).sum() == pytest.approx(1.0)


@torch.no_grad()
def test_a_pooling_resampler_gives_a_flat_map():
    model = one_block(ResamplerKind.pooling)
    ids = prompt(model, 5, [0], seed=0)
    maps = attention_maps(model, ids, tokens=[4], vision_features=features(1, 1, frames=2))
    for frame in range(2):
        torch.testing.assert_close(maps.over_patches(4, frame=frame), torch.full((1, 3, 3), 1 / 18))


@torch.no_grad()
def test_pixels_give_the_maps_of_their_features():
    model = FlamingoForConditionalGeneration.from_backbones(
        tiny_vision_encoder(),
        tiny_language_model(),
        resampler=ResamplerConfig(depth=1, num_latents=2, heads=2, dim_head=4),
        cross_attention=CrossAttentionConfig(every=2, heads=2, dim_head=4),
    ).eval()
    assert model.vision_encoder is not None
    pixels = torch.randn(1, 1, 1, 3, 32, 32)
    ids = prompt(model, 4, [0], seed=0)
    seen = model.vision_encoder(pixels[0, 0])[None, None]
    direct, encoded = (
        attention_maps(model, ids, tokens=[3], pixel_values=pixels),
        attention_maps(model, ids, tokens=[3], vision_features=seen),
    )
    assert direct.over_patches(3).shape == (2, 4, 4)
    assert torch.equal(direct.over_patches(3), encoded.over_patches(3))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_the_model_is_as_it_was(build, family):
    model = build(family)
    ids, media = prompt(model, 8, [1], seed=2), features(1, 1)
    before = model(ids, vision_features=media).logits
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    attention_maps(model, ids, tokens=[4], vision_features=media)
    with pytest.raises(ValueError):  # also after a call that failed on its way
        attention_maps(model, ids, tokens=[4], vision_features=media[..., :5])
    for name, module in model.named_modules():
        assert set(vars(module)) == attributes[name]
        kept = module._forward_pre_hooks.values()
        assert not [hook for hook in kept if "attention_maps" in getattr(hook, "__module__", "")]
    assert torch.equal(model(ids, vision_features=media).logits, before)


@torch.no_grad()
def test_calls_of_another_thread_are_not_taken_for_the_own(build, monkeypatch):
    model = build()
    ids, media = prompt(model, 8, [1], seed=2), features(1, 1)
    alone = attention_maps(model, ids, tokens=[4], vision_features=media)
    other = prompt(model, 8, [1], seed=3)
    forward = FlamingoForConditionalGeneration.forward

    def both(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        thread = threading.Thread(
            target=forward, args=(self, other), kwargs={"vision_features": media}
        )
        thread.start()
        thread.join()
        return out

    monkeypatch.setattr(FlamingoForConditionalGeneration, "forward", both)
    beside = attention_maps(model, ids, tokens=[4], vision_features=media)
    assert torch.equal(alone.weights, beside.weights)


def test_what_cannot_be_shown_is_refused():
    model = one_block()
    ids, media = prompt(model, 6, [2], seed=0), features(1, 1)
    shown = {"tokens": [3], "vision_features": media}

    def maps(ids=ids, **changed) -> AttentionMaps:
        return attention_maps(model, ids, **{**shown, **changed})

    with pytest.raises(ValueError, match="tokens: expected .* first <image> to 5, got 1"):
        maps(tokens=[1])
    with pytest.raises(ValueError, match="tokens: expected .* got 6"):
        maps(tokens=[6])
    with pytest.raises(ValueError, match="input_ids: expected one row, got 2"):
        maps(ids=ids.repeat(2, 1))
    with pytest.raises(ValueError, match="got both or neither"):
        maps(vision_features=None)
    with pytest.raises(ValueError, match="expected vision_features .* got pixels"):
        maps(vision_features=None, pixel_values=torch.zeros(1, 1, 1, 3, 8, 8))
    with pytest.raises(ValueError, match="grid: expected .* the 8 tokens"):
        maps(vision_features=media[:, :, :, :8])
    with pytest.raises(ValueError, match=r"grid: .* got \(3, 4\)"):
        maps(grid=(3, 4))
    assert maps(vision_features=media[:, :, :, :8], grid=(2, 4)).over_patches(3).shape == (1, 2, 4)
    cls_first = maps(grid=(2, 4))  # the first of nine tokens is no patch
    assert torch.equal(cls_first.origins.flatten(3), maps().origins.flatten(3)[..., 1:])
    with pytest.raises(ValueError, match=r"token: expected one of \[3\], got 4"):
        maps().over_patches(4)
    with pytest.raises(ValueError, match="medium: expected a number from 0 to 0, got 1"):
        maps().over_patches(3, medium=1)
    with pytest.raises(ValueError, match="frame: expected a number from 0 to 0, got 1"):
        maps().over_patches(3, frame=1)
