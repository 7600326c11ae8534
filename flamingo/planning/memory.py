"""Bytes on one device while training, by part.

Weights, gradients and optimiser states are counted to the byte. Activations are an estimate, of
what autograd keeps for the backward pass under bf16 autocast with fused attention: frozen linears
keep nothing of their input, norms keep theirs in fp32, what trains keeps its inputs in the
computing type. Left out: buffers (rotary tables, feature statistics), the device's own context,
fragmentation, and the workspace of kernels; leave a tenth of the device for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from flamingo.backbones import language as lm
from flamingo.backbones.mosaic_gpt import MosaicGPTForCausalLM
from flamingo.model.cross_attention import GatedCrossAttentionBlock
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.loss import rows_at_a_time
from flamingo.model.resampler import MLPResampler, PerceiverResampler
from flamingo.planning.flops import blocks_of, dense_weights, latents_of, matrices
from flamingo.planning.shapes import Shapes
from flamingo.planning.workload import BatchShape
from flamingo.training.distributed import buckets

FP32 = 4


@dataclass(frozen=True)
class Layout:
    """How a model lies on devices."""

    devices: int
    sharded: bool
    """Weights, gradients and optimiser states divided over the devices
    (``training.sharding=full``; the vision encoder is whole), instead of a copy of all on each."""
    checkpointing: bool
    dtype: torch.dtype
    """Of the language model's frozen weights and of what is computed."""
    vision_dtype: torch.dtype
    """Of the vision encoder, which computes in what its device does fast."""

    @property
    def shards(self) -> int:
        return self.devices if self.sharded else 1

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize


def device_memory(shapes: Shapes, batch: BatchShape, layout: Layout) -> dict[str, int]:
    """Bytes of each part on one device, of which ``batch`` is its largest micro-batch."""
    model = shapes.model
    trained = list(model.trainable_parameters().values())
    shards, itemsize = layout.shards, layout.itemsize
    weights = FP32 * sum(p.numel() for p in trained)
    parts = {
        "frozen weights": frozen_bytes(shapes, layout),
        "trained weights, fp32": weights // shards,
        "gradients": weights // shards,
        "Adam states": adam_bytes(model) // shards,
        "autocast's copies": autocast_bytes(model, layout),
        "communication": communication_bytes(model, layout),
        "activations": activation_bytes(shapes, batch, layout),
        "logits and loss": loss_bytes(model, batch, itemsize),
    }
    return {name: int(size) for name, size in parts.items()}


def loss_bytes(model: FlamingoForConditionalGeneration, batch: BatchShape, itemsize: int) -> int:
    """Logits, their copies and gradients, of the positions that are worked on together."""
    vocabulary = _vocabulary(model)
    rows = min(batch.learned, rows_at_a_time(vocabulary, torch.device("cuda")))
    return rows * vocabulary * (3 * itemsize + 3 * FP32)


# ---------------------------------------------------------------------------- weights


def frozen_bytes(shapes: Shapes, layout: Layout) -> int:
    """Language model (a tied head once), unless it trains, and vision encoder."""
    trains = shapes.model.config.trains_language_model
    language = 0 if trains else _numel(shapes.model.language_model) // layout.shards
    return language * layout.itemsize + shapes.encoder.parameters * layout.vision_dtype.itemsize


def adam_bytes(model: FlamingoForConditionalGeneration) -> int:
    """Both moments in fp32, and of each tensor the count of its steps."""
    trained = model.trainable_parameters().values()
    return sum(2 * FP32 * p.numel() + FP32 for p in trained)


def autocast_bytes(model: FlamingoForConditionalGeneration, layout: Layout) -> int:
    """The lower-precision copies of trained matrices, kept from forward to backward.

    With checkpointing or sharding only those of the layer at work.
    """
    if layout.itemsize >= FP32:
        return 0
    sizes = [layout.itemsize * matrices(block) for block in blocks_of(model).values()]
    resampler = layout.itemsize * matrices(model.resampler)
    if model.config.trains_language_model:
        layers = lm.decoder_layers(model.language_model)
        sizes += [layout.itemsize * matrices(layer) for layer in layers]
        sizes.append(layout.itemsize * lm.output_head(model.language_model).weight.numel())
    if layout.checkpointing or layout.sharded:
        return max(*sizes, resampler)
    return sum(sizes) + resampler


def communication_bytes(model: FlamingoForConditionalGeneration, layout: Layout) -> int:
    """Copies: the gradients that are summed together, twice (side by side, and their sum).

    Sharded: what is gathered at a time, of the units of :mod:`flamingo.training.sharding`: the one
    at work, the next, and the rest of the model (the head), which stays for all of a pass.
    """
    if layout.devices == 1:
        return 0
    if not layout.sharded:
        sums = buckets(list(model.trainable_parameters().values()))
        return 2 * FP32 * max(sum(p.numel() for p in bucket) for bucket in sums)
    language = model.language_model
    held = FP32 if model.config.trains_language_model else layout.itemsize
    layers = [_numel(layer) for layer in lm.decoder_layers(language)]
    rest = (_numel(language) - sum(layers)) * held
    units = [size * held for size in layers]
    units += [FP32 * _numel(part) for part in (model.resampler, *blocks_of(model).values())]
    if not lm.has_tied_head(language):
        units.append(lm.input_matrix(language).numel() * held)
        rest -= units[-1]
    return rest + sum(sorted(units)[-2:])


# ---------------------------------------------------------------------------- activations


def activation_bytes(shapes: Shapes, batch: BatchShape, layout: Layout) -> int:
    """What is kept between forward and backward of one micro-batch, logits apart."""
    model, itemsize = shapes.model, layout.itemsize
    width = lm.hidden_size(model.language_model)
    text, patches = batch.rows * batch.tokens, batch.frames * shapes.encoder.patches
    latents = latents_of(model, patches)
    layers = [
        text
        * (
            decoder_bytes(layer, width, itemsize, trained=model.config.trains_language_model)
            + scores_bytes(model, batch.tokens, itemsize)
        )
        for layer in lm.decoder_layers(model.language_model)
    ]
    for index, block in blocks_of(model).items():
        projected = batch.media * latents * (shapes.encoder.dim + 4 * _inner(block)) * itemsize
        layers[index] += text * block_bytes(block, width, itemsize) + projected
    resampling = [batch.media * size for size in resampler_bytes(model, patches, itemsize)]
    features = FP32 * batch.media * patches * shapes.encoder.dim
    if not layout.checkpointing:
        return features + sum(layers) + sum(resampling)
    kept = len(layers) * text * width * itemsize
    kept += len(resampling) * batch.media * latents * shapes.encoder.dim * FP32
    return features + kept + max([*layers, *resampling])


def decoder_bytes(layer: nn.Module, width: int, itemsize: int, trained: bool = False) -> int:
    """Of a decoder layer, for one token.

    What its linears give is kept by attention and activation; of a gated feed-forward the product
    keeps both of its halves; its two norms keep their input in fp32. Linears that train keep their
    input too, each a copy of its own, which autocast makes.
    """
    shapes = [_in_out(module) for module in layer.modules() if _is_linear(module)]
    assert len(shapes) <= len(dense_weights(layer))
    outputs = [out for _, out in shapes]
    inner = max(inside for inside, _ in shapes)
    gated = inner if outputs.count(inner) >= 2 else 0
    inputs = trained * sum(inside for inside, _ in shapes)
    return itemsize * (sum(outputs) + gated + inputs) + 2 * FP32 * width


def scores_bytes(model: FlamingoForConditionalGeneration, tokens: int, itemsize: int) -> int:
    """Attention's probabilities of one layer, for one token: in fp32 and cast, where the family has
    no fused attention (transformers' MPT, BLOOM)."""
    language = model.language_model
    if getattr(language, "_supports_sdpa", False) or isinstance(language, MosaicGPTForCausalLM):
        return 0
    heads = language.config.get_text_config().num_attention_heads
    return heads * tokens * (FP32 + itemsize)


def block_bytes(block: GatedCrossAttentionBlock, width: int, itemsize: int) -> int:
    """Of a gated block, for one token of text."""
    inner, wide = _inner(block), block.feed_forward.down.in_features
    halves = 4 if hasattr(block.feed_forward, "gate") else 2
    return 2 * FP32 * width + itemsize * (4 * width + 3 * inner + halves * wide)


def resampler_bytes(
    model: FlamingoForConditionalGeneration, patches: int, itemsize: int
) -> list[int]:
    """Of each layer of the resampler, for one medium."""
    resampler = model.resampler
    if not isinstance(resampler, PerceiverResampler | MLPResampler):
        return []
    latents, sizes = latents_of(model, patches), []
    layer: Any
    for layer in resampler.layers:
        wide, dim = layer.feed_forward.down.in_features, layer.feed_forward.down.out_features
        size = latents * (FP32 * dim + itemsize * (dim + 2 * wide))
        if isinstance(resampler, PerceiverResampler):
            inner, keys = layer.attention.to_q.out_features, patches + latents
            size += keys * itemsize * (dim + 2 * inner)
            size += latents * (FP32 * dim + itemsize * (dim + 3 * inner))
        sizes.append(size)
    return sizes


# ---------------------------------------------------------------------------- sizes


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, torch.Tensor)
        and weight.ndim == 2
        and not isinstance(module, nn.Embedding)
    )


def _in_out(module: nn.Module) -> tuple[int, int]:
    """Of a linear; GPT-2's keep their matrix the other way round."""
    first, second = cast(torch.Tensor, module.weight).shape
    return (second, first) if isinstance(module, nn.Linear) else (first, second)


def _inner(block: GatedCrossAttentionBlock) -> int:
    return block.attention.to_q.out_features


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _vocabulary(model: FlamingoForConditionalGeneration) -> int:
    return lm.vocabulary_size(model.language_model) + len(model.config.new_token_ids or ())
