"""What training may touch: exact names, frozen backbones, gradients with checkpointing, dropout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from flamingo import FlamingoForConditionalGeneration
from flamingo.testing import tiny_language_model
from tests.model.conftest import VISION_DIM, features, prompt

Build = Callable[..., FlamingoForConditionalGeneration]

LINEARS = ("norm.weight", "norm.bias", "to_q.weight", "to_kv.weight", "to_out.weight")
FEED_FORWARD = ("0.weight", "0.bias", "1.weight", "3.weight")


def expected_names(tied: bool) -> set[str]:
    names = {"resampler.latents", "resampler.frame_embeddings"}
    names |= {"resampler.norm.weight", "resampler.norm.bias", "new_tokens.input"}
    names |= set() if tied else {"new_tokens.output"}
    for layer in (0, 1):
        prefix = f"resampler.layers.{layer}"
        names |= {
            f"{prefix}.attention.{norm}.{kind}"
            for norm in ("norm_media", "norm_latents")
            for kind in ("weight", "bias")
        }
        names |= {f"{prefix}.attention.{name}" for name in LINEARS[2:]}
        names |= {f"{prefix}.feed_forward.{name}" for name in FEED_FORWARD}
    for layer in (1, 3):  # before every second of four layers
        prefix = f"cross_attention.{layer}"
        names |= {f"{prefix}.attention_gate", f"{prefix}.feed_forward_gate"}
        names |= {f"{prefix}.attention.{name}" for name in LINEARS}
        names |= {f"{prefix}.feed_forward.{name}" for name in FEED_FORWARD}
    return names


@pytest.mark.parametrize("tied", [True, False])
def test_exactly_these_parameters_train(build: Build, tied: bool):
    model = build("llama", tie_word_embeddings=tied)
    assert set(model.trainable_parameters()) == expected_names(tied)
    requiring = {name for name, p in model.named_parameters() if p.requires_grad}
    assert requiring == expected_names(tied)


def train_step(model: FlamingoForConditionalGeneration) -> torch.Tensor:
    ids = torch.cat([prompt(model, 10, [1, 5], seed=1), prompt(model, 10, [2, 6], seed=2)])
    loss = model(ids, vision_features=features(2, 2), labels=ids).loss
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "mpt", "bloom"])
def test_the_language_model_is_bit_identical_after_training(build: Build, family: str):
    model = build(family, dropout=0.1).train()
    before = {name: p.clone() for name, p in model.language_model.named_parameters()}
    trained = {name: p.clone() for name, p in model.trainable_parameters().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        train_step(model)
        optimizer.step()
        optimizer.zero_grad()
    after = dict(model.language_model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = model.trainable_parameters()
    still = {n for n in trained if torch.equal(trained[n], moved[n])}
    assert still <= {"resampler.frame_embeddings"}  # rows of frames that no clip had
    assert not still


def test_training_mode_keeps_the_frozen_models_dropout_off(build: Build):
    model = build("gpt2", dropout=0.5).train()
    ids = prompt(model, 10, [1], seed=1)
    one = model(ids, vision_features=features(1, 1)).logits
    two = model(ids, vision_features=features(1, 1)).logits
    assert model.training and torch.equal(one, two)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "mpt", "falcon"])
def test_gradient_checkpointing_gives_the_same_gradients(build: Build, family: str):
    plain, checkpointed = build(family).train(), build(family).train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    layers = []  # how often a decoder layer's norm runs tells that it was recomputed
    first = next(m for m in checkpointed.language_model.modules() if "Norm" in type(m).__name__)
    first.register_forward_hook(lambda *_: layers.append(1))
    torch.testing.assert_close(train_step(checkpointed), train_step(plain))
    for name, parameter in plain.trainable_parameters().items():
        assert parameter.grad is not None, name
        torch.testing.assert_close(checkpointed.trainable_parameters()[name].grad, parameter.grad)
    if family not in ("opt",):  # its first norm may belong to no layer
        assert len(layers) == 2


def test_checkpointing_a_language_model_that_drops_out_by_itself_is_an_error(build: Build):
    model = build("opt", dropout=0.1)
    with pytest.raises(ValueError, match=r"dropout: expected 0 .* got 0.1"):
        model.gradient_checkpointing_enable()


def test_transformers_trainer_averages_over_accumulated_batches(build: Build, tmp_path: Path):
    """Two batches of one row, accumulated, are one batch of two: as many labels in each."""
    ids = [prompt(build(), 8, [1], seed=seed)[0] for seed in (1, 2)]
    rows = [{"input_ids": row, "labels": row, "vision_features": features(1, 1)[0]} for row in ids]
    trained = []
    for size in (1, 2):
        model = build()
        options = TrainingArguments(
            str(tmp_path / str(size)), per_device_train_batch_size=size, max_steps=1,
            gradient_accumulation_steps=2 // size, optim="sgd", learning_rate=1.0, max_grad_norm=0,
            lr_scheduler_type="constant", use_cpu=True, report_to="none", save_strategy="no",
            disable_tqdm=True,
        )  # fmt: skip
        Trainer(model, options, train_dataset=rows).train()  # type: ignore[arg-type]
        trained.append(model.trainable_parameters())
    for name, parameter in trained[1].items():
        torch.testing.assert_close(trained[0][name], parameter, msg=name)
    start = build().trainable_parameters()
    assert not torch.equal(trained[0]["resampler.latents"], start["resampler.latents"])


def test_no_gradient_reaches_below_the_first_block():
    """The frozen layers below the first gated block cost no backward pass."""
    from flamingo.config import CrossAttentionConfig, ResamplerConfig

    model = FlamingoForConditionalGeneration.from_backbones(
        None,
        tiny_language_model("llama"),
        vision_dim=VISION_DIM,
        resampler=ResamplerConfig(depth=1, num_latents=2, heads=2, dim_head=8),
        cross_attention=CrossAttentionConfig(
            every=None, layers=[2], heads=2, dim_head=8, gate_init=0.5
        ),
    ).train()
    needs = []
    for layer in model.language_model.model.layers:
        layer.register_forward_hook(lambda _, __, out: needs.append(out.requires_grad))
    text = torch.randint(3, 500, (1, 6))
    text[0, 1] = model.config.image_token_id
    model.new_tokens.requires_grad_(False)  # its rows enter at the bottom
    model(text, vision_features=features(1, 1))
    assert needs == [False, False, True, True]


def test_bf16_blocks_and_fp32_blocks_on_a_bf16_language_model_agree(build: Build):
    """Autocast training: the LM in bf16, what trains in fp32."""
    mixed = build()
    mixed.language_model.to(torch.bfloat16)
    half = build().to(torch.bfloat16)
    ids = prompt(mixed, 8, [1], seed=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        one = mixed(ids, vision_features=features(1, 1)).logits.float()
        two = half(ids, vision_features=features(1, 1)).logits.float()
    assert (one - two).norm() / two.norm() < 0.03
