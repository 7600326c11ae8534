"""The plan's operations against torch's own counter on real forward and backward passes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flamingo import FlamingoForConditionalGeneration
from flamingo.choices import LanguageTraining, ResamplerKind
from flamingo.config import CrossAttentionConfig, LanguageConfig, ResamplerConfig
from flamingo.planning.flops import batch_flops, dense_weights
from flamingo.planning.shapes import EncoderShape, Shapes
from flamingo.planning.workload import BatchShape
from flamingo.testing import save_tiny_language_model, tiny_language_model

RESAMPLER = ResamplerConfig(depth=2, num_latents=4, heads=2, dim_head=8)
CROSS_ATTENTION = CrossAttentionConfig(every=2, heads=2, dim_head=8, gate_init=0.5)
PATCHES, VISION_DIM = 9, 24
BATCH = BatchShape(rows=3, tokens=40, images=3, media=6, frames=1, learned=12)


def build(family: str, resampler=RESAMPLER, cross_attention=CROSS_ATTENTION):
    torch.manual_seed(0)
    return FlamingoForConditionalGeneration.from_backbones(
        None,
        tiny_language_model(family, attn_implementation="eager"),
        vision_dim=VISION_DIM,
        resampler=resampler,
        cross_attention=cross_attention,
    ).train()


def with_trained_language_model(folder: Path) -> FlamingoForConditionalGeneration:
    torch.manual_seed(0)
    save_tiny_language_model(folder, attn_implementation="eager")
    model = FlamingoForConditionalGeneration.from_backbones(
        None,
        LanguageConfig(name=str(folder), train=LanguageTraining.full),
        vision_dim=VISION_DIM,
        resampler=RESAMPLER,
        cross_attention=CROSS_ATTENTION,
    )
    model.language_model.set_attn_implementation("eager")
    return model.train()


def counted(model: FlamingoForConditionalGeneration, batch: BatchShape = BATCH) -> tuple[int, int]:
    """Operations of a real forward and backward, as torch counts what is dispatched."""
    ids = torch.randint(3, 500, (batch.rows, batch.tokens))
    features = None
    if batch.media:
        each = batch.media // batch.rows  # the same parts of text for each medium: no padding
        ids[:, :: batch.tokens // each] = model.config.image_token_id
        features = torch.randn(batch.rows, batch.images, batch.frames, PATCHES, VISION_DIM)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[:, 10 : 10 + batch.learned // batch.rows] = True
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with forward:
        logits = model(input_ids=ids, vision_features=features, logits_to_keep=keep).logits
    with backward:
        logits.logsumexp(dim=-1).sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def planned(
    model: FlamingoForConditionalGeneration, batch: BatchShape = BATCH, checkpointing: bool = False
) -> tuple[int | float, int | float]:
    shapes = Shapes(model, EncoderShape(parameters=0, patches=PATCHES, dim=VISION_DIM, flops=0))
    parts = batch_flops(shapes, batch, checkpointing, encodes=True).values()
    return sum(p.forward for p in parts), sum(p.backward + p.recomputed for p in parts)


@pytest.mark.parametrize(
    "family", ["llama", "gpt_neox", "opt", "mpt", "gpt2", "qwen2", "gemma", "bloom"]
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_is_what_is_computed(family: str, checkpointing: bool):
    model = build(family)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert planned(model, checkpointing=checkpointing) == pytest.approx(counted(model), rel=0.003)


def test_a_language_model_that_trains_costs_another_product_a_matrix(tmp_path):
    model = with_trained_language_model(tmp_path)
    assert planned(model) == pytest.approx(counted(model), rel=0.003)


@pytest.mark.parametrize("kind", list(ResamplerKind))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_kind_of_resampler_is_counted(kind: ResamplerKind, checkpointing: bool):
    model = build("llama", replace(RESAMPLER, kind=kind))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert planned(model, checkpointing=checkpointing) == pytest.approx(counted(model), rel=0.003)


def test_gated_feed_forwards_clips_and_text_alone_are_counted():
    gated = build("llama", cross_attention=replace(CROSS_ATTENTION, ff_gated=True, ff_width=20))
    assert planned(gated) == pytest.approx(counted(gated), rel=0.003)
    clips = replace(BATCH, frames=3)
    model = build("llama")
    assert planned(model, clips) == pytest.approx(counted(model, clips), rel=0.003)
    text = replace(BATCH, images=0, media=0)
    assert planned(model, text) == pytest.approx(counted(model, text), rel=0.003)


def test_layers_that_are_not_dense_are_refused():
    layer = torch.nn.Module()
    layer.experts = torch.nn.Parameter(torch.zeros(4, 3, 2))
    with pytest.raises(ValueError, match=r"expected layers of linears.*experts of shape \(4, 3, 2"):
        dense_weights(layer)
