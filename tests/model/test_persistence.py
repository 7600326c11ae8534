"""Saving and loading: by name with fingerprints, with the backbones, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from flamingo import FlamingoConfig, FlamingoForConditionalGeneration
from flamingo.choices import Activation
from flamingo.config import CrossAttentionConfig, ResamplerConfig, VisionConfig
from flamingo.testing import save_tiny_language_model, tiny_language_model, tiny_vision_encoder
from tests.model.conftest import prompt

SMALL = {
    "resampler": ResamplerConfig(
        depth=1, num_latents=2, heads=2, dim_head=8, activation=Activation.gelu
    ),
    "cross_attention": CrossAttentionConfig(every=2, heads=2, dim_head=8, gate_init=0.5),
}


def tiny_clip(folder: Path) -> VisionConfig:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    CLIPVisionModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)
    return VisionConfig(name=str(folder))


@pytest.fixture
def named(tmp_path: Path) -> FlamingoForConditionalGeneration:
    """A model whose backbones are local folders, with feature statistics set."""
    torch.manual_seed(1)
    model = FlamingoForConditionalGeneration.from_backbones(
        tiny_clip(tmp_path / "clip"), str(save_tiny_language_model(tmp_path / "lm")), **SMALL
    ).eval()
    model.resampler.set_feature_statistics(torch.randn(24), torch.rand(24) + 0.5)
    return model


def logits(model: FlamingoForConditionalGeneration) -> torch.Tensor:
    pixels = torch.randn(1, 1, 1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(prompt(model, 6, [1], seed=1), pixel_values=pixels).logits


def test_what_trains_is_saved_and_restored_bit_for_bit(named, tmp_path: Path):
    named.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    statistics = {"resampler.feature_mean", "resampler.feature_std"}
    assert set(saved) == set(named.trainable_parameters()) | statistics
    restored = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(restored), logits(named))
    assert restored.config.resampler_options == SMALL["resampler"]
    assert not restored.training


def test_how_it_generates_is_restored(named, tmp_path: Path):
    named.generation_config.max_new_tokens = 3
    named.generation_config.suppress_tokens = [5, 7]
    named.save_pretrained(tmp_path / "saved")
    restored = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert restored.generation_config.max_new_tokens == 3
    assert restored.never_generated == sorted({5, 7, restored.config.image_token_id})


@pytest.mark.parametrize("auto", [True, False])
def test_with_backbones_the_folder_needs_nothing_else(named, tmp_path: Path, auto: bool):
    expected = logits(named)
    named.save_pretrained(tmp_path / "whole", include_backbones=True)
    for name in ("clip", "lm"):
        shutil.rmtree(tmp_path / name)
    shutil.move(tmp_path / "whole", tmp_path / "elsewhere")
    loader = AutoModelForImageTextToText if auto else FlamingoForConditionalGeneration
    restored = loader.from_pretrained(tmp_path / "elsewhere")
    assert isinstance(restored, FlamingoForConditionalGeneration)
    assert torch.equal(logits(restored), expected)
    restored.save_pretrained(tmp_path / "again", include_backbones=True)
    again = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), expected)


def test_the_config_round_trips_through_the_auto_class(named, tmp_path: Path):
    named.save_pretrained(tmp_path / "saved")
    config = AutoConfig.from_pretrained(tmp_path / "saved")
    assert isinstance(config, FlamingoConfig)
    source = {"_name_or_path": str(tmp_path / "saved")}
    assert config.to_dict() == named.config.to_dict() | source


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("vision.layer", "last", "expected a whole number, got 'last'"),
        ("language.train", "all", "expected one of frozen, full, scratch, got 'all'"),
        ("resampler.depth", True, "expected a whole number, got True"),
        ("resampler.depth", 0, "expected >= 1, got 0"),
        ("resampler.kind", "mpl", "expected one of .*, got 'mpl'; did you mean mlp?"),
        ("cross_attention.gates", 1, "unknown configuration key; did you mean .*gate?"),
    ],
)
def test_a_value_that_config_json_cannot_hold_is_named_by_its_key(
    named, key: str, value: object, expected: str, tmp_path: Path
):
    named.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    config = json.loads(path.read_text())
    section, name = key.split(".")
    config[section][name] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{key}: {expected}".replace("?", r"\?")):
        FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")


def test_config_json_holds_choices_by_the_words_that_name_them(named, tmp_path: Path):
    """Names are written; files whose choices were written by their values say the same."""
    named.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    for section in ("vision", "language", "resampler", "cross_attention"):
        by_value = asdict(
            getattr(named.config, f"{section}_options"),
            dict_factory=lambda items: {k: getattr(v, "value", v) for k, v in items},
        )
        assert json.dumps(saved[section]) == json.dumps(by_value, sort_keys=True)


@pytest.mark.parametrize("which", ["lm", "clip"])
def test_a_backbone_whose_weights_differ_is_refused(named, tmp_path: Path, which: str):
    named.save_pretrained(tmp_path / "saved")
    weights = tmp_path / which / "model.safetensors"
    tensors = load_file(weights)
    name = max(tensors, key=lambda n: tensors[n].numel())
    tensors[name].view(-1)[7] += 0.5  # one number of one matrix
    save_file(tensors, weights, metadata={"format": "pt"})
    what = "language model" if which == "lm" else "vision encoder"
    with pytest.raises(ValueError, match=f"{what}: expected fingerprint"):
        FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")


def test_other_features_of_the_same_encoder_are_refused(named, tmp_path: Path):
    named.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    config = json.loads(path.read_text())
    config["vision"]["layer"] = -2
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="vision encoder: expected fingerprint"):
        FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")


def test_the_same_weights_in_bf16_are_the_same_backbone(named, tmp_path: Path):
    named.save_pretrained(tmp_path / "saved")
    half = FlamingoForConditionalGeneration.from_pretrained(
        tmp_path / "saved", dtype=torch.bfloat16
    )
    assert half.dtype == torch.bfloat16
    full, low = logits(named), logits(half).float()
    assert (full - low).norm() / full.norm() < 0.03


def test_float16_is_the_same_backbone_too(named, tmp_path: Path):
    named.save_pretrained(tmp_path / "saved")
    half = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype="float16")
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    full, low = logits(named), logits(half).float()
    assert (full - low).norm() / full.norm() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_built_in_any_dtype_a_model_can_be_restored(tmp_path: Path, dtype: torch.dtype):
    name = str(save_tiny_language_model(tmp_path / "lm"))
    model = FlamingoForConditionalGeneration.from_backbones(
        None, name, vision_dim=24, dtype=dtype, **SMALL
    )
    bare = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    for own, expected in zip(model.language_model.parameters(), bare.parameters(), strict=True):
        assert own.dtype is dtype and torch.equal(own, expected)
    assert {p.dtype for p in model.trainable_parameters().values()} == {torch.float32}
    model.save_pretrained(tmp_path / "saved")
    for kept in (dtype, None):
        restored = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype=kept)
        assert restored.config.language_fingerprint == model.config.language_fingerprint


def test_in_bf16_the_language_model_is_transformers_own(tmp_path: Path):
    """Rotary angles stay in fp32, as AutoModelForCausalLM leaves them: bf16 ones lose positions."""
    name = str(save_tiny_language_model(tmp_path / "lm"))
    closed = SMALL | {"cross_attention": CrossAttentionConfig(every=2, heads=2, dim_head=8)}
    model = FlamingoForConditionalGeneration.from_backbones(None, name, vision_dim=8, **closed)
    model.save_pretrained(tmp_path / "saved")
    half = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype="bfloat16")
    bare = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16).eval()
    ids = torch.arange(100)[None] % bare.config.vocab_size
    with torch.no_grad():
        expected = bare(ids).logits
        own = half(ids).logits[..., : expected.shape[-1]]
    assert torch.equal(own, expected)


def test_backbones_built_in_memory_are_given_again_or_saved_along(tmp_path: Path):
    encoder, language_model = tiny_vision_encoder(), tiny_language_model()
    model = FlamingoForConditionalGeneration.from_backbones(encoder, language_model, **SMALL)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="built in memory"):
        FlamingoForConditionalGeneration.from_pretrained(tmp_path, vision_encoder=encoder)
    restored = FlamingoForConditionalGeneration.from_pretrained(
        tmp_path, vision_encoder=encoder, language_model=tiny_language_model()
    )
    assert torch.equal(logits(restored), logits(model.eval()))
    with pytest.raises(ValueError, match="language model: expected fingerprint"):
        FlamingoForConditionalGeneration.from_pretrained(
            tmp_path, vision_encoder=encoder, language_model=tiny_language_model(seed=1)
        )


def test_weights_that_do_not_fit_are_listed(named, tmp_path: Path):
    named.save_pretrained(tmp_path / "saved")
    weights = tmp_path / "saved" / "model.safetensors"
    tensors = load_file(weights)
    tensors["surplus"] = tensors.pop("resampler.norm.bias")
    tensors["resampler.latents"] = tensors["resampler.latents"][:1].clone()
    save_file(tensors, weights)
    with pytest.raises(ValueError) as error:
        FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")
    for part in (
        "missing ['resampler.norm.bias']",
        "left over ['surplus']",
        "(2, 24), got (1, 24)",
    ):
        assert part in str(error.value)


def test_a_folder_without_a_model_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"expected a saved Flamingo with model\.safetensors"):
        FlamingoForConditionalGeneration.from_pretrained(tmp_path)


def test_saving_onto_a_file_changes_nothing(named, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="expected a folder"):
        named.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_trains_is_taken_from_a_gathered_state_dict(named, tmp_path):
    """As accelerate and transformers' Trainer save a model that is sharded over processes."""
    gathered = {name: tensor + 1 for name, tensor in named.state_dict().items()}
    named.save_pretrained(tmp_path / "saved", state_dict=gathered)
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    trained = named.trainable_parameters()
    assert all(torch.equal(saved[name], trained[name] + 1) for name in trained)
    del gathered["new_tokens.input"]
    with pytest.raises(ValueError, match=r"state_dict: .* it lacks \['new_tokens.input'\]"):
        named.save_pretrained(tmp_path / "other", state_dict=gathered)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("options", [{"safe_serialization": False}, {"variant": "fp16"}])
def test_options_that_change_the_files_are_refused(named, options, tmp_path):
    with pytest.raises(ValueError, match=f"known options, got .*{next(iter(options))}"):
        named.save_pretrained(tmp_path / "saved", **options)
    assert not (tmp_path / "saved").exists()
