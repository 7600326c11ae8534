"""Planned bytes against those of a real model, its gradients, its optimiser and its graph."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flamingo import FlamingoForConditionalGeneration
from flamingo.choices import Activation, LanguageTraining
from flamingo.config import CrossAttentionConfig, LanguageConfig, ResamplerConfig, TrainingConfig
from flamingo.planning.memory import Layout, communication_bytes, device_memory
from flamingo.planning.shapes import EncoderShape, Shapes
from flamingo.planning.trial import kept_bytes
from flamingo.planning.workload import BatchShape
from flamingo.testing import save_tiny_language_model, tiny_language_model
from flamingo.training import distributed
from flamingo.training.optim import build_optimizer

PATCHES, VISION_DIM = 64, 96
BATCH = BatchShape(rows=4, tokens=128, images=2, media=8, frames=1, learned=0)
ONE = Layout(
    devices=1,
    sharded=False,
    checkpointing=False,
    dtype=torch.bfloat16,
    vision_dtype=torch.bfloat16,
)


def build(family: str, dtype: torch.dtype = torch.bfloat16):
    kernel = "eager" if family in ("mpt", "mosaic_gpt") else "sdpa"
    return around(tiny_language_model(family, hidden=128, attn_implementation=kernel).to(dtype))


def build_trained(family: str, folder: Path):
    """With a language model that trains."""
    save_tiny_language_model(folder, family, hidden=128)
    return around(LanguageConfig(name=str(folder), train=LanguageTraining.full))


def around(language) -> FlamingoForConditionalGeneration:
    torch.manual_seed(0)
    return FlamingoForConditionalGeneration.from_backbones(
        None,
        language,
        vision_dim=VISION_DIM,
        resampler=ResamplerConfig(
            depth=2, num_latents=16, heads=2, dim_head=32, activation=Activation.gelu
        ),
        cross_attention=CrossAttentionConfig(
            every=2, heads=2, dim_head=32, gate_init=0.5, activation=Activation.gelu
        ),
    ).train()


def shapes_of(model: FlamingoForConditionalGeneration) -> Shapes:
    return Shapes(model, EncoderShape(parameters=1000, patches=PATCHES, dim=VISION_DIM, flops=0))


def run(model: FlamingoForConditionalGeneration, batch: BatchShape = BATCH):
    ids = torch.randint(3, 500, (batch.rows, batch.tokens))
    ids[:, [0, 7]] = model.config.image_token_id
    features = torch.randn(batch.rows, batch.images, 1, PATCHES, VISION_DIM)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[0, 5] = True
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=ids, vision_features=features, logits_to_keep=keep).logits


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt", "mpt"])
def test_weights_gradients_and_optimiser_are_right_to_the_byte(family: str):
    check_to_the_byte(build(family))


def test_a_language_model_that_trains_is_counted_to_the_byte(tmp_path):
    model = build_trained("llama", tmp_path)
    check_to_the_byte(model)
    assert device_memory(shapes_of(model), BATCH, ONE)["frozen weights"] == 2000


def check_to_the_byte(model: FlamingoForConditionalGeneration) -> None:
    parameters = model.trainable_parameters()
    optimizer = build_optimizer(TrainingConfig(), model, parameters)
    run(model).float().logsumexp(dim=-1).sum().backward()
    optimizer.step()
    planned = device_memory(shapes_of(model), BATCH, ONE)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    encoder = 1000 * 2
    assert planned["frozen weights"] == bytes_of(frozen) + encoder
    assert planned["trained weights, fp32"] == bytes_of(parameters.values())
    assert planned["gradients"] == bytes_of(p.grad for p in parameters.values())
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert planned["Adam states"] == bytes_of(states)
    assert planned["communication"] == 0


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt", "mpt", "mosaic_gpt"])
def test_the_estimate_of_activations_is_near_what_autograd_keeps(family: str):
    model = build(family)
    planned = device_memory(shapes_of(model), BATCH, ONE)
    estimate = planned["activations"] + planned["autocast's copies"]
    assert estimate == pytest.approx(kept_bytes(model, lambda: run(model)), rel=0.15)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_so_it_is_of_a_language_model_that_trains(family: str, tmp_path):
    model = build_trained(family, tmp_path)
    planned = device_memory(shapes_of(model), BATCH, ONE)
    estimate = planned["activations"] + planned["autocast's copies"]
    assert estimate == pytest.approx(kept_bytes(model, lambda: run(model)), rel=0.15)


def test_shards_divide_what_lies_and_checkpointing_what_is_kept():
    shapes = shapes_of(build("llama"))
    copies = device_memory(shapes, BATCH, replace(ONE, devices=4))
    sharded = device_memory(shapes, BATCH, replace(ONE, devices=4, sharded=True))
    lean = device_memory(shapes, BATCH, replace(ONE, devices=4, checkpointing=True))
    for part in ("trained weights, fp32", "gradients", "Adam states"):
        assert sharded[part] == copies[part] // 4 == lean[part] // 4
    encoder = 2000  # each device's own
    assert sharded["frozen weights"] - encoder == (copies["frozen weights"] - encoder) // 4
    assert copies["communication"] == 2 * copies["gradients"]  # all of so few in one message
    assert 0 < sharded["communication"] < sum(copies[p] for p in ("frozen weights", "gradients"))
    assert sharded["activations"] == copies["activations"] > 2 * lean["activations"]


def test_gradients_are_summed_in_messages_and_gathered_by_unit(monkeypatch: pytest.MonkeyPatch):
    model = build("gpt_neox")  # whose head is not tied
    monkeypatch.setattr(distributed, "BUCKET_ELEMENTS", 1)
    largest = max(p.numel() for p in model.trainable_parameters().values())
    assert communication_bytes(model, replace(ONE, devices=4)) == 2 * 4 * largest
    language = model.language_model
    layers = language.gpt_neox.layers
    units = [2 * sum(p.numel() for p in layer.parameters()) for layer in layers]
    units += [
        4 * sum(p.numel() for p in part.parameters())
        for part in (model.resampler, *model.cross_attention.values())
    ]
    table, head = (
        language.get_input_embeddings().weight,
        language.get_output_embeddings().weight,
    )
    units.append(2 * table.numel())
    rest = 2 * head.numel() + 2 * sum(
        p.numel() for p in language.gpt_neox.final_layer_norm.parameters()
    )
    gathered = communication_bytes(model, replace(ONE, devices=4, sharded=True))
    assert gathered == rest + sum(sorted(units)[-2:])


def test_in_fp32_nothing_is_copied_and_the_language_model_is_twice_as_large():
    shapes = shapes_of(build("llama"))
    half = device_memory(shapes, BATCH, ONE)
    full = device_memory(shapes, BATCH, replace(ONE, dtype=torch.float32))
    assert full["autocast's copies"] == 0
    encoder = 2000  # has a type of its own
    assert full["frozen weights"] - encoder == 2 * (half["frozen weights"] - encoder)
    both = replace(ONE, dtype=torch.float32, vision_dtype=torch.float32)
    assert device_memory(shapes, BATCH, both)["frozen weights"] == 2 * half["frozen weights"]
