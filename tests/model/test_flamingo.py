"""Invariants of the whole model: what it may change in the LM, and what each token may see."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from transformers import PreTrainedModel

from flamingo import FlamingoForConditionalGeneration
from flamingo.backbones.language import decoder_path
from flamingo.choices import MediaVisibility
from flamingo.config import CrossAttentionConfig, ResamplerConfig
from flamingo.model.conditioning import conditioned_layers
from flamingo.testing import FAMILIES, tiny_language_model, tiny_vision_encoder
from tests.model.conftest import VISION_DIM, features, prompt

Build = Callable[..., FlamingoForConditionalGeneration]
MODES = list(MediaVisibility)


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_gates_give_the_bare_language_models_logits_bit_for_bit(build: Build, family: str):
    bare = tiny_language_model(family)
    vocabulary = bare.get_input_embeddings().weight.shape[0]
    ids = torch.randint(3, 500, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # left padding
    with torch.no_grad():  # the bare logits come from an instance no Flamingo ever touched
        alone = bare(input_ids=ids).logits
        padded = bare(input_ids=ids, attention_mask=mask).logits
    model = build(family, gate=0.0)
    assert type(model.language_model) is type(bare)
    with torch.no_grad():
        assert torch.equal(model(ids).logits[..., :vocabulary], alone)
        own = model(ids, attention_mask=mask).logits[..., :vocabulary]
        if family == "gpt2":  # absolute positions: the bare model counts the padding
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            padded = bare(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        assert torch.equal(own[mask.bool()], padded[mask.bool()])
        assert torch.equal(model.language_model(input_ids=ids).logits, alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_open_gates_change_the_logits_from_the_first_image_on_only(build: Build, family: str):
    model = build(family)
    ids = prompt(model, 10, [3, 6], seed=1)
    with torch.no_grad():
        one = model(ids, vision_features=features(1, 2, seed=1)).logits
        two = model(ids, vision_features=features(1, 2, seed=2)).logits
    assert torch.equal(one[:, :3], two[:, :3])  # tokens before the first image see no media
    assert (one[:, 3:] - two[:, 3:]).abs().amax(dim=-1).min() > 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_which_image_moves_which_token(build: Build, mode: MediaVisibility):
    """In a one-layer LM no text attention lies below: the mask alone decides."""
    torch.manual_seed(0)
    model = FlamingoForConditionalGeneration.from_backbones(
        None,
        tiny_language_model("llama", layers=1),
        vision_dim=VISION_DIM,
        resampler=ResamplerConfig(depth=1, num_latents=2, heads=2, dim_head=8),
        cross_attention=CrossAttentionConfig(
            every=1, heads=2, dim_head=8, gate_init=1.0, media=mode
        ),
    ).eval()
    ids = prompt(model, 7, [1, 4], seed=0)
    base, changed = features(1, 2), features(1, 2)
    changed[:, 0] = features(1, 1, seed=9)[:, 0]
    stream = []  # what enters the layer: the conditioned stream itself
    model.language_model.model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: stream.append(args[0].clone()), with_kwargs=True
    )
    with torch.no_grad():
        model(ids, vision_features=base)
        model(ids, vision_features=changed)
    moved = ((stream[0] - stream[1]).abs().amax(dim=-1)[0] > 1e-6).tolist()
    later = mode is MediaVisibility.all_previous
    assert moved == [False, True, True, True, later, later, later]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "mpt", "mosaic_gpt"])
def test_left_padded_right_padded_and_alone_agree(build: Build, family: str, mode):
    model = build(family, media=mode)
    rows = [prompt(model, 9, [2, 5], seed=1), prompt(model, 6, [1], seed=2)]
    media = features(2, 2)
    pad = 3
    with torch.no_grad():
        alone = [model(r, vision_features=media[i : i + 1]).logits[0] for i, r in enumerate(rows)]
        for left in (True, False):
            ids = torch.full((2, 9), 0)
            mask = torch.zeros_like(ids)
            ids[0], mask[0] = rows[0][0], 1
            place = slice(pad, None) if left else slice(0, 6)
            ids[1, place], mask[1, place] = rows[1][0], 1
            logits = model(ids, attention_mask=mask, vision_features=media).logits
            torch.testing.assert_close(logits[0], alone[0], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(logits[1, place], alone[1], atol=2e-5, rtol=1e-4)


def test_padding_images_change_nothing_and_are_not_encoded(build: Build):
    model = build()
    ids = torch.cat([prompt(model, 8, [1, 4], seed=1), prompt(model, 8, [2], seed=2)])
    media = features(2, 3)
    seen = []
    model.resampler.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with torch.no_grad():
        one = model(ids, vision_features=media).logits
        media[0, 2] = torch.nan
        media[1, 1:] = torch.nan
        two = model(ids, vision_features=media).logits
        narrow = model(ids, vision_features=media[:, :2]).logits
    assert torch.equal(one, two)
    torch.testing.assert_close(narrow, one)
    assert seen == [3, 3, 3]


def test_the_three_forms_of_media_agree():
    torch.manual_seed(0)
    encoder = tiny_vision_encoder(dim=VISION_DIM)
    model = FlamingoForConditionalGeneration.from_backbones(
        encoder,
        tiny_language_model("llama"),
        resampler=ResamplerConfig(depth=1, num_latents=3, heads=2, dim_head=8),
        cross_attention=CrossAttentionConfig(every=2, heads=2, dim_head=8, gate_init=0.5),
    ).eval()
    ids = prompt(model, 8, [1, 4], seed=1)
    pixels = torch.randn(1, 2, 1, 3, 32, 32)
    vision = encoder(pixels[0, :, 0])[None, :, None]
    with torch.no_grad():
        logits = model(ids, pixel_values=pixels).logits
        torch.testing.assert_close(model(ids, vision_features=vision).logits, logits)
        latents = model.encode_media(pixel_values=pixels)
        torch.testing.assert_close(model(ids, media_latents=latents).logits, logits)
    with pytest.raises(ValueError, match="at most one"):
        model(ids, pixel_values=pixels, media_latents=latents)


def test_more_image_tokens_than_images_is_an_error_that_names_the_row(build: Build):
    model = build()
    ids = torch.cat([prompt(model, 8, [1], seed=1), prompt(model, 8, [1, 3], seed=2)])
    with pytest.raises(ValueError, match=r"row 1: .* each of its 2 <image> tokens, got 1"):
        model(ids, vision_features=features(2, 1))
    with pytest.raises(ValueError, match=r"row 0: .* 1 <image> tokens, got 0"):
        model(ids)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 1, 1, 9, 7), "expected width 24, got 7"), ((2, 1, 1, 9, 24), "expected 1 rows")],
)
def test_media_of_another_shape_are_an_error(build: Build, shape: tuple[int, ...], message: str):
    model = build()
    with pytest.raises(ValueError, match=message):
        model(prompt(model, 5, [1], seed=0), vision_features=torch.zeros(shape))


def test_pixels_without_an_encoder_are_an_error(build: Build):
    model = build()
    with pytest.raises(ValueError, match="without a vision encoder"):
        model(prompt(model, 5, [1], seed=0), pixel_values=torch.zeros(1, 1, 1, 3, 8, 8))


def test_a_model_of_a_configuration_without_an_image_token_is_refused(build: Build):
    config = deepcopy(build().config)
    config.image_token_id = None
    with pytest.raises(ValueError, match=r"config\.image_token_id: expected .* got none"):
        FlamingoForConditionalGeneration(config)


def test_a_clip_is_one_medium(build: Build):
    model = build()
    ids = prompt(model, 6, [1], seed=0)
    with torch.no_grad():
        clip = model(ids, vision_features=features(1, 1, frames=3)).logits
        still = model(ids, vision_features=features(1, 1, frames=3)[:, :, :1]).logits
    assert clip.shape == still.shape
    assert (clip - still).abs().max() > 1e-4


def test_new_tokens_follow_the_vocabulary_and_read_their_own_table(build: Build):
    model = build("llama")
    vocabulary = model.config.text_config.vocab_size
    assert (model.config.image_token_id, model.config.end_of_chunk_token_id) == (
        vocabulary,
        vocabulary + 1,
    )
    ids = torch.tensor([[5, vocabulary + 1, 7]])
    with torch.no_grad():
        before = model(ids).logits
        assert before.shape[-1] == vocabulary + 2
        model.new_tokens.input[1] += 1
        after = model(ids).logits
    assert torch.equal(before[:, 0, :vocabulary], after[:, 0, :vocabulary])
    assert (before[:, 1:] - after[:, 1:]).abs().max() > 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_start_like_the_tokens_that_begin_and_end_texts(build: Build, tied: bool):
    model = build("llama", tie_word_embeddings=tied, bos_token_id=7, eos_token_id=[9, 3])
    for rows, frozen in (
        (model.new_tokens.input, model.language_model.get_input_embeddings().weight),
        (model.new_tokens.output_rows, model.language_model.get_output_embeddings().weight),
    ):
        distance = torch.cdist(rows.detach(), frozen)
        assert distance.argmin(dim=1).tolist() == [7, 9]
        assert 0 < distance.amin(dim=1).min() < 0.1 * frozen.norm(dim=1).mean()


def test_ids_inside_the_vocabulary_can_be_new_tokens_too(build: Build):
    model = build("llama")
    model.new_tokens.token_ids.copy_(torch.tensor([500, 501]))
    hidden = torch.randn(1, 1, 32)
    own = model.language_model.get_output_embeddings()(hidden)
    logits = model._logits(hidden, 0)
    assert logits.shape == own.shape
    torch.testing.assert_close(logits[..., [500, 501]], hidden @ model.new_tokens.output_rows.T)
    assert torch.equal(logits[..., :500], own[..., :500])


def test_a_selection_of_positions_gives_the_same_logits(build: Build):
    model = build()
    ids = prompt(model, 8, [1], seed=0)
    keep = torch.tensor([[0, 0, 1, 0, 1, 1, 0, 0]]).bool()
    with torch.no_grad():
        full = model(ids, vision_features=features(1, 1)).logits
        kept = model(ids, vision_features=features(1, 1), logits_to_keep=keep).logits
        last = model(ids, vision_features=features(1, 1), logits_to_keep=2).logits
    torch.testing.assert_close(kept, full[keep])
    torch.testing.assert_close(last, full[:, -2:])


def test_the_loss_is_the_mean_next_token_cross_entropy_of_the_labels(build: Build):
    model = build()
    ids = prompt(model, 6, [1], seed=0)
    labels = torch.full_like(ids, -100)
    labels[0, 3], labels[0, 5] = ids[0, 3], ids[0, 5]
    with torch.no_grad():
        out = model(ids, vision_features=features(1, 1), labels=labels)
    log = out.logits[0].log_softmax(-1)
    expected = -(log[2, ids[0, 3]] + log[4, ids[0, 5]]) / 2
    torch.testing.assert_close(out.loss, expected)


def test_a_tuple_is_returned_where_return_dict_asks_for_one(build: Build):
    model = build()
    ids, media = prompt(model, 6, [1], seed=0), features(1, 1)
    inputs = {"input_ids": ids, "vision_features": media, "labels": ids, "use_cache": False}
    with torch.no_grad():
        output = model(**inputs)
        loss, logits = model(**inputs, return_dict=False)
        assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
        said = model.generate(ids, vision_features=media, max_new_tokens=3)
        model.config.return_dict = False
        assert isinstance(model(**inputs), tuple)
        assert torch.equal(model(**inputs, return_dict=True).logits, logits)
        assert torch.equal(model.generate(ids, vision_features=media, max_new_tokens=3), said)


@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_two_models_share_one_language_model_and_one_detaches_cleanly(family: str):
    language_model = tiny_language_model(family)
    layers = language_model.get_submodule(decoder_path(language_model).layers)
    hooks = [len(layer._forward_pre_hooks) for layer in layers]
    ids = torch.randint(3, 500, (1, 7))
    media = features(1, 1)
    with torch.no_grad():
        bare = language_model(input_ids=ids).logits
        models = [on(language_model, seed) for seed in (1, 2)]
        ids[0, 1] = models[0].config.image_token_id
        first, second = (m(ids, vision_features=media).logits for m in models)
        alone = on(tiny_language_model(family), seed=1)(ids, vision_features=media).logits
        assert torch.equal(first, alone)  # the second model's hooks change nothing for the first
        assert (first - second).abs().max() > 1e-3
        models[0].detach_language_model()
        assert torch.equal(models[1](ids, vision_features=media).logits, second)
        with pytest.raises(ValueError, match="detached"):
            models[0](ids, vision_features=media)
        models[1].detach_language_model()
        ids[0, 1] = 5
        assert language_model(input_ids=ids).logits.shape == bare.shape
    assert [len(layer._forward_pre_hooks) for layer in layers] == hooks


@pytest.mark.parametrize("family", ["llama", "mpt", "falcon", "bloom", "gptj"])
def test_calls_of_other_threads_on_the_same_language_model_stay_apart(family: str):
    """While one Flamingo is inside its first layer, the bare LM and another Flamingo are asked."""
    language_model = tiny_language_model(family)
    mine, other = (on(language_model, seed) for seed in (1, 2))
    ids = torch.randint(3, 500, (1, 7), generator=torch.Generator().manual_seed(1))
    marked = ids.clone()
    marked[0, 1] = mine.config.image_token_id
    calls = {
        "mine": lambda: mine(marked, vision_features=features(1, 1), use_cache=False).logits,
        "other": lambda: other(marked, vision_features=features(1, 1), use_cache=False).logits,
        "bare": lambda: language_model(input_ids=ids, use_cache=False).logits,
    }
    with torch.no_grad():
        expected = {name: call() for name, call in calls.items()}
    assert (expected["mine"] - expected["other"]).abs().max() > 1e-3
    inside, done, here = threading.Event(), threading.Event(), threading.get_ident()

    def wait(*_: object) -> None:
        if threading.get_ident() == here:
            inside.set()
            assert done.wait(10)

    found: dict[str, torch.Tensor] = {}

    def ask_meanwhile() -> None:
        assert inside.wait(10)
        with torch.no_grad():
            found.update({name: calls[name]() for name in ("other", "bare")})
        done.set()

    layer = language_model.get_submodule(decoder_path(language_model).layers)[0]
    handle = layer.register_forward_hook(wait)
    thread = threading.Thread(target=ask_meanwhile)
    thread.start()
    with torch.no_grad():
        found["mine"] = calls["mine"]()
    thread.join()
    handle.remove()
    for name, logits in expected.items():
        assert torch.equal(found[name], logits), name


@pytest.mark.parametrize("family", ["mpt", "gptj"])
def test_a_call_that_fails_leaves_nothing_behind(build: Build, family: str):
    model = build(family)
    ids = prompt(model, 6, [1], seed=1)
    bare = model.language_model(input_ids=ids.clamp(max=500)).logits.detach()
    last = model.language_model.get_submodule(decoder_path(model.language_model).layers)[-1]
    handle = last.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(ids, vision_features=features(1, 1))
    handle.remove()
    assert torch.equal(model.language_model(input_ids=ids.clamp(max=500)).logits, bare)


def on(language_model: PreTrainedModel, seed: int) -> FlamingoForConditionalGeneration:
    """A model on a language model that may have another already."""
    torch.manual_seed(seed)
    return FlamingoForConditionalGeneration.from_backbones(
        None,
        language_model,
        vision_dim=VISION_DIM,
        resampler=ResamplerConfig(depth=1, num_latents=2, heads=2, dim_head=8),
        cross_attention=CrossAttentionConfig(heads=2, dim_head=8, gate_init=0.5),
    ).eval()


def test_a_decoder_that_drops_the_media_on_their_way_is_refused(build: Build, monkeypatch):
    model = build("llama")
    decoder = model.language_model.base_model
    forward = decoder.forward
    monkeypatch.setattr(
        decoder,
        "forward",
        lambda flamingo_media, **inputs: forward(**inputs),
    )
    for images in ([1], []):
        with pytest.raises(ValueError, match=r"language model: .* did not reach layers \[1, 3\]"):
            model(prompt(model, 5, images, seed=0), vision_features=features(1, 1))


def test_which_layers_carry_a_block():
    assert conditioned_layers(CrossAttentionConfig(every=4), 10) == [3, 7]
    assert conditioned_layers(CrossAttentionConfig(every=None, layers=[0, 5]), 10) == [0, 5]
    with pytest.raises(ValueError, match="below the LM's 4 layers"):
        conditioned_layers(CrossAttentionConfig(every=None, layers=[4]), 4)
    with pytest.raises(ValueError, match="below the LM's 4 layers"):
        conditioned_layers(CrossAttentionConfig(every=5), 4)


def test_bf16_follows_fp32(build: Build):
    ids_model = build()
    ids = prompt(ids_model, 8, [1, 4], seed=0)
    with torch.no_grad():
        full = ids_model(ids, vision_features=features(1, 2)).logits
        model = build().to(torch.bfloat16)
        half = model(ids, vision_features=features(1, 2)).logits
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() / full.norm() < 0.03
