"""IDEFICS checkpoints against transformers' own model, option by option."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import IdeficsForVisionText2Text, LlamaForCausalLM

from flamingo import FlamingoForConditionalGeneration
from flamingo.interop import load_idefics
from flamingo.interop.idefics import plan
from flamingo.interop.moves import How, Part
from tests.interop import tiny_idefics as tiny

RESAMPLER = {"use_resampler": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "resampler": RESAMPLER,
    "resampler with q and k norms": RESAMPLER | {"perceiver": {"qk_layer_norms_perceiver": True}},
    "resampler of another shape": RESAMPLER | {"perceiver": {"resampler_n_latents": 5,
        "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 6}},
    "q and k norms": {"qk_layer_norms": True, "rms_norm_eps": 0.05},
    "gates of each channel": {"alpha_type": "vector", "alpha_initializer": "normal",
        "alphas_initializer_range": 0.5},
    "scalar gates drawn at random": {"alphas_initializer_range": 0.5},
    "a block before every layer": {"cross_layer_interval": 1},
    "one block": {"cross_layer_interval": 4},
    "tied": {"tie_word_embeddings": True},
    "one additional token": {"additional_vocab_size": 2},
    "gelu": {"hidden_act": "gelu"},
    "rotary base": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "tower": {"vision": {"embed_dim": 36, "num_hidden_layers": 3, "num_attention_heads": 3,
        "patch_size": 4, "hidden_act": "quick_gelu", "layer_norm_eps": 0.01}},
    "all": RESAMPLER | {"perceiver": {"qk_layer_norms_perceiver": True}, "qk_layer_norms": True,
        "alpha_type": "vector", "cross_layer_interval": 1},
}  # fmt: skip
Pair = tuple[IdeficsForVisionText2Text, FlamingoForConditionalGeneration]


def pair(folder: Path, **options: Any) -> Pair:
    reference = tiny.save(folder, **options)
    return reference, load_idefics(str(folder))


@pytest.fixture(scope="module", params=OPTIONS.values(), ids=OPTIONS)
def every_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Theirs and ours, for each of the options."""
    return pair(tmp_path_factory.mktemp("idefics"), **request.param)


@torch.no_grad()
def check_logits(
    reference: IdeficsForVisionText2Text,
    loaded: FlamingoForConditionalGeneration,
    inputs: dict[str, Tensor],
) -> Tensor:
    """Both models' logits agree wherever there is a token; gives them."""
    kept = inputs["attention_mask"].bool()
    expected = reference(**inputs).logits
    actual = loaded(**tiny.ours(inputs)).logits
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual[kept], expected[kept], atol=1e-4, rtol=0)
    return expected


def test_logits_are_those_of_transformers(every_pair: Pair):
    reference, loaded = every_pair
    for rows in (tiny.LEFT_PADDED, tiny.RIGHT_PADDED, tiny.LEFT_PADDED[1:]):
        inputs = tiny.batch(rows)
        expected = check_logits(reference, loaded, inputs)
        other = reference(**inputs | {"pixel_values": inputs["pixel_values"].flip(-1)}).logits
        seen = inputs["image_attention_mask"].any(dim=-1)
        assert (other - expected)[seen].abs().amax(dim=-1).min() > 1e-2  # the media matter


def test_greedy_continuations_are_those_of_transformers(every_pair: Pair):
    reference, loaded = every_pair
    inputs = tiny.batch(tiny.LEFT_PADDED, seed=1)
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": tiny.PAD}
    how |= {"suppress_tokens": [tiny.IMAGE], "min_new_tokens": 6}
    expected = reference.generate(**inputs, **how)
    assert torch.equal(loaded.generate(**tiny.ours(inputs), **how), expected)
    assert torch.equal(loaded.generate(**tiny.ours(inputs), **how, use_cache=False), expected)


@pytest.mark.parametrize("additional", [0, 1])
def test_an_image_token_of_any_place_can_be_named(additional: int, tmp_path: Path):
    reference = tiny.save(tmp_path, additional_vocab_size=additional)
    image = tiny.VOCABULARY - 1 + additional
    with pytest.raises(ValueError, match=rf"image_token_id: .* {additional} additional tokens"):
        load_idefics(str(tmp_path))
    loaded = load_idefics(str(tmp_path), image_token_id=image)
    rows = tuple([4 if token == 60 else token for token in row] for row in tiny.LEFT_PADDED)
    inputs = tiny.batch(rows, image)
    check_logits(reference, loaded, inputs)


def test_loaded_in_float16_it_can_be_saved_and_restored(tmp_path: Path):
    tiny.save(tmp_path / "theirs")
    loaded = load_idefics(str(tmp_path / "theirs"), dtype=torch.float16)
    assert {p.dtype for p in loaded.parameters()} == {torch.float16}
    loaded.save_pretrained(tmp_path / "ours")
    restored = FlamingoForConditionalGeneration.from_pretrained(
        tmp_path / "ours", dtype=torch.float16
    )
    pairs = zip(loaded.parameters(), restored.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_tokens_before_the_first_image_see_none(tmp_path: Path):
    reference, loaded = pair(tmp_path)
    inputs = tiny.batch(tiny.LEFT_PADDED[1:])
    assert not inputs["image_attention_mask"][0, :2].any()
    with torch.no_grad():
        some = loaded(**tiny.ours(inputs)).logits
        other = loaded(**tiny.ours(inputs | {"pixel_values": torch.randn(1, 2, 3, 16, 16)})).logits
    assert torch.equal(some[:, :2], other[:, :2])
    assert (some[:, 2:] - other[:, 2:]).abs().amax(dim=-1).min() > 1e-3
    nothing = inputs | {"image_attention_mask": torch.zeros_like(inputs["image_attention_mask"])}
    with torch.no_grad():
        expected = reference(**nothing).logits[:, :2]
    torch.testing.assert_close(some[:, :2], expected, atol=1e-4, rtol=0)


def test_special_tokens_and_parts_are_those_of_the_checkpoint(tmp_path: Path):
    reference, loaded = pair(tmp_path, use_resampler=True)
    assert loaded.config.new_token_ids == [60, 61, 62]
    assert loaded.config.image_token_id == tiny.IMAGE
    assert loaded.config.end_of_chunk_token_id is None
    assert loaded.generation_config.eos_token_id == [tiny.EOS]
    assert type(loaded.language_model) is LlamaForCausalLM
    assert not any(p.requires_grad for p in loaded.language_model.parameters())
    assert all(p.requires_grad for p in loaded.trainable_parameters().values())
    mine = sum(p.numel() for p in loaded.parameters())
    # Theirs has the tower's last norm, ours a frame embedding; both are of the tower's width.
    assert mine == sum(p.numel() for p in reference.parameters()) - 2 * 24 + 24
    assert not loaded.training


# ---------------------------------------------------------------------------- saving


@pytest.mark.parametrize("options", [{}, OPTIONS["all"], {"tie_word_embeddings": True}])
@pytest.mark.parametrize("whole", [True, False])
def test_saved_and_restored_it_gives_the_same_logits(
    options: dict[str, Any], whole: bool, tmp_path: Path
):
    loaded = pair(tmp_path / "idefics", **options)[1]
    inputs = tiny.ours(tiny.batch(tiny.LEFT_PADDED))
    with torch.no_grad():
        expected = loaded(**inputs).logits
    loaded.save_pretrained(tmp_path / "saved", include_backbones=whole)
    if whole:
        (tmp_path / "idefics").rename(tmp_path / "gone")
    restored = FlamingoForConditionalGeneration.from_pretrained(
        tmp_path / "saved", dtype=torch.float32
    )
    with torch.no_grad():
        assert torch.equal(restored(**inputs).logits, expected)
    if not whole:
        (tmp_path / "idefics").rename(tmp_path / "gone")
        with pytest.raises((OSError, ValueError), match="idefics"):
            FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")


def test_in_bfloat16_it_is_the_same_model(tmp_path: Path):
    reference = tiny.save(tmp_path, use_resampler=True, qk_layer_norms=True)
    half = load_idefics(str(tmp_path), dtype=torch.bfloat16)
    full = load_idefics(str(tmp_path))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.config.vision_fingerprint == full.config.vision_fingerprint
    assert half.config.language_fingerprint == full.config.language_fingerprint
    inputs = tiny.batch(tiny.LEFT_PADDED[1:])
    with torch.no_grad():
        low, exact = half(**tiny.ours(inputs)).logits.float(), reference(**inputs).logits
    assert (low - exact).norm() / exact.norm() < 0.05


def test_the_loaded_weights_outlive_their_file(tmp_path: Path):
    loaded = pair(tmp_path)[1]
    inputs = tiny.ours(tiny.batch(tiny.LEFT_PADDED))
    with torch.no_grad():
        expected = loaded(**inputs).logits
        file = tmp_path / "model.safetensors"
        with file.open("r+b") as opened:  # in place, as a careless copy over it would
            opened.write(b"\0" * file.stat().st_size)
        assert torch.equal(loaded(**inputs).logits, expected)


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize("safe", [True, False])
def test_shards_are_read_together(safe: bool, tmp_path: Path):
    reference, whole = pair(tmp_path / "one")
    folder = tmp_path / "many"
    if safe:
        reference.save_pretrained(folder, max_shard_size="30KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    else:
        folder.mkdir()
        reference.config.save_pretrained(folder)
        state = dict(reference.state_dict())
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # of old versions
        keys = list(state)
        files = {"a.bin": keys[::2], "b.bin": keys[1::2]}
        for name, own in files.items():
            torch.save({key: state[key] for key in own}, folder / name)
        weight_map = {key: name for name, own in files.items() for key in own}
        index = folder / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    inputs = tiny.ours(tiny.batch(tiny.LEFT_PADDED))
    with torch.no_grad():
        assert torch.equal(load_idefics(str(folder))(**inputs).logits, whole(**inputs).logits)


class NotATensor:
    pass


def test_a_pickle_of_more_than_tensors_is_refused(tmp_path: Path):
    reference = tiny.model(tiny.config())
    reference.config.save_pretrained(tmp_path)
    torch.save({**reference.state_dict(), "extra": NotATensor()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: expected tensors and plain values"):
        load_idefics(str(tmp_path))


def test_keys_that_do_not_fit_are_all_listed(tmp_path: Path):
    tiny.save(tmp_path, use_resampler=True)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.gated_cross_attn_layers.1.alpha_dense"]
    del tensors["model.layers.3.mlp.up_proj.weight"]
    tensors["model.perceiver_resampler.surplus"] = torch.zeros(2)
    tensors["model.perceiver_resampler.latents"] = torch.zeros(7, 24)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError) as error:
        load_idefics(str(tmp_path))
    for part in (
        str(tmp_path),
        "missing ['model.gated_cross_attn_layers.1.alpha_dense', "
        "'model.layers.3.mlp.up_proj.weight']",
        "left over ['model.perceiver_resampler.surplus']",
        "model.perceiver_resampler.latents: expected (3, 24), got (7, 24)",
    ):
        assert part in str(error.value)


def test_a_tied_head_of_other_values_is_refused(tmp_path: Path):
    tiny.save(tmp_path, tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    load_idefics(str(tmp_path))
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.weight equal to model\.embed_tokens\.weight"):
        load_idefics(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_hidden_layers": 3},
            "cross_layer_interval: expected a divisor of the 3 layers, got 2",
        ),
        ({"hidden_act": "tanh"}, "hidden_act: expected one of .*, got 'tanh'"),
    ],
)
def test_what_the_model_cannot_be_is_refused(options: dict, message: str, tmp_path: Path):
    tiny.save(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        load_idefics(str(tmp_path))


def test_another_model_and_a_folder_without_weights_are_refused(tmp_path: Path):
    tiny.config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected weights in model.safetensors"):
        load_idefics(str(tmp_path))
    tiny.config().vision_config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected model_type 'idefics', got 'idefics_vision'"):
        load_idefics(str(tmp_path))


# ---------------------------------------------------------------------------- the plan


def test_the_plan_says_what_becomes_of_every_tensor():
    settings = tiny.config(use_resampler=True, alpha_type="vector")
    shapes = {k: tuple(t.shape) for k, t in tiny.model(settings).state_dict().items()}
    moves = plan(shapes, settings)
    assert sorted(key for move in moves for key in move.source) == sorted(shapes)
    by_source = {move.source: (move.part, move.target, move.how, move.shape) for move in moves}
    block = "model.gated_cross_attn_layers.1."
    keys_values = (f"{block}cross_attn.k_proj.weight", f"{block}cross_attn.v_proj.weight")
    assert by_source[keys_values] == (
        Part.trained, "cross_attention.2.attention.to_kv.weight", How.stacked, (64, 24)
    )  # fmt: skip
    assert by_source[f"{block}alpha_dense",] == (
        Part.trained, "cross_attention.2.feed_forward_gate", How.flattened, (32,)
    )  # fmt: skip
    norm = "model.norm.weight"
    assert by_source[norm,] == (Part.language_model, norm, How.unchanged, (32,))
    tower = "model.vision_model.pre_layrnorm.bias"
    assert by_source[tower,] == (
        Part.vision_encoder, "pre_layrnorm.bias", How.unchanged, (24,)
    )  # fmt: skip
