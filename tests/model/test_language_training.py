"""``language.train``: what trains then, what is saved, and what comes back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flamingo import FlamingoForConditionalGeneration
from flamingo.choices import LanguageTraining
from flamingo.config import CrossAttentionConfig, LanguageConfig, ResamplerConfig
from flamingo.interop.open_flamingo_export import open_flamingo_interval
from flamingo.model.card import model_card
from flamingo.testing import save_tiny_language_model, tiny_language_model
from flamingo.training.optim import decayed_names
from tests.model.conftest import prompt

DIM = 12


def build(folder: Path, train: LanguageTraining, seed: int = 0) -> FlamingoForConditionalGeneration:
    torch.manual_seed(seed)
    return FlamingoForConditionalGeneration.from_backbones(
        None,
        LanguageConfig(name=str(folder), train=train),
        vision_dim=DIM,
        dtype=torch.bfloat16,
        resampler=ResamplerConfig(depth=1, num_latents=2, heads=2, dim_head=8),
        cross_attention=CrossAttentionConfig(every=2, heads=2, dim_head=8, gate_init=0.5),
    )


def logits(model: FlamingoForConditionalGeneration) -> torch.Tensor:
    features = torch.randn(1, 1, 1, 4, DIM, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.eval()(prompt(model, 6, [1], seed=1), vision_features=features).logits


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path) -> Path:
    return save_tiny_language_model(tmp_path / "lm", tie_word_embeddings=request.param)


def test_all_of_a_language_model_trains_in_fp32_or_nothing(folder):
    frozen = build(folder, LanguageTraining.frozen)
    assert not any(n.startswith("language_model.") for n in frozen.trainable_parameters())
    assert frozen.language_model.dtype is torch.bfloat16
    model = build(folder, LanguageTraining.full)
    own = {f"language_model.{name}" for name, _ in model.language_model.named_parameters()}
    trained = model.trainable_parameters()
    assert own < set(trained) and set(trained) - own == set(frozen.trainable_parameters())
    assert all(p.requires_grad and p.dtype is torch.float32 for p in trained.values())
    assert not model.train().language_model.training  # no dropout
    bare = tiny_language_model(tie_word_embeddings=model.new_tokens.output is None)
    for name, parameter in bare.named_parameters():
        assert torch.equal(parameter, model.language_model.get_parameter(name))


def test_from_scratch_weights_are_drawn_by_the_seed(folder):
    first, same, other = (build(folder, LanguageTraining.scratch, seed) for seed in (1, 1, 2))
    name = "model.layers.0.mlp.up_proj.weight"
    weights = [m.language_model.get_parameter(name) for m in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], tiny_language_model().get_parameter(name))


@pytest.mark.parametrize("train", [LanguageTraining.full, LanguageTraining.scratch])
@pytest.mark.parametrize("include_backbones", [False, True])
def test_what_was_trained_is_saved_and_needs_no_language_model_again(
    folder, tmp_path, train, include_backbones
):
    model = build(folder, train)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "saved", include_backbones=include_backbones)
    assert set(model.trainable_parameters()) < set(load_file(tmp_path / "saved/model.safetensors"))
    shutil.rmtree(folder)
    restored = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(restored), logits(model))
    assert set(restored.trainable_parameters()) == set(model.trainable_parameters())


def test_matrices_of_a_trained_language_model_decay_and_embeddings_do_not(folder):
    model = build(folder, LanguageTraining.full)
    decayed = decayed_names(model) & set(model.trainable_parameters())
    language = {name for name in decayed if name.startswith("language_model.")}
    assert "language_model.model.layers.0.mlp.up_proj.weight" in language
    assert not any("norm" in name or "embed" in name for name in language)
    frozen = decayed_names(build(folder, LanguageTraining.frozen))
    assert decayed - language == frozen


def test_the_card_says_that_it_was_trained(folder):
    card = str(model_card(build(folder, LanguageTraining.full), name="x", complete=False))
    assert "lets a trained language model" in card and "; trained (full)" in card


def test_open_flamingo_cannot_express_it(folder):
    with pytest.raises(ValueError, match="a language model that was trained"):
        open_flamingo_interval(build(folder, LanguageTraining.full))
