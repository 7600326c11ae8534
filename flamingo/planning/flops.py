"""Floating-point operations of a step, by part of the model.

What is counted are matrix products (2 operations a multiply-add), as torch's ``FlopCounterMode``
counts them: linears, attention's two products over all pairs of positions (fused causal kernels
skip up to half of them), and of the vision encoder its convolutions. Left out are norms,
activations, softmax, rotary tables, the loss and the optimiser: a few per cent of the time of a
large model, more of a small one's.

Two quantities: what is computed (:func:`step_flops`: padding, and what gradient checkpointing
repeats), and what is needed (:func:`needed_flops`), which model FLOPs utilisation is a share of.

What a backward pass costs follows from what trains. A linear that trains needs two products (for
its input and for its weight), a frozen one only that for its input, and attention's products two
each. (``language.train`` decides for the language model's.) The new tokens' rows train and stand in
front of the first layer, so gradients flow through *all* layers of the language model, not only
from the first conditioned one upwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from flamingo.backbones import language as lm
from flamingo.choices import MediaVisibility
from flamingo.model.cross_attention import GatedCrossAttentionBlock
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.resampler import IdentityResampler, PerceiverResampler, PoolingResampler
from flamingo.planning.shapes import Shapes
from flamingo.planning.workload import BatchShape, MicroBatch, Workload


@dataclass(frozen=True)
class Flops:
    """Of one part."""

    forward: int | float = 0
    backward: int | float = 0
    recomputed: int | float = 0
    """The forward passes that gradient checkpointing repeats."""

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            self.forward + other.forward,
            self.backward + other.backward,
            self.recomputed + other.recomputed,
        )

    def __mul__(self, factor: int | float) -> Flops:
        return Flops(self.forward * factor, self.backward * factor, self.recomputed * factor)

    @property
    def total(self) -> int | float:
        return self.forward + self.backward + self.recomputed


def step_flops(
    shapes: Shapes, work: Workload, *, checkpointing: bool = False, encodes: bool = True
) -> dict[str, Flops]:
    """A step's operations over all devices, by part, as they are computed.

    ``encodes`` is False where features come from a cache. Raises ``ValueError`` for a language
    model whose layers are not dense.
    """
    parts: dict[str, Flops] = {}
    for batch in work.batches:
        for name, flops in batch_flops(shapes, batch, checkpointing, encodes).items():
            parts[name] = parts.get(name, Flops()) + flops * (1 / work.steps)
    return parts


def batch_flops(
    shapes: Shapes, batch: BatchShape, checkpointing: bool, encodes: bool
) -> dict[str, Flops]:
    """As :func:`step_flops`, of one micro-batch."""
    model = shapes.model
    patches = batch.frames * shapes.encoder.patches
    latents = latents_of(model, patches)
    encoded = batch.media * batch.frames * encodes
    blocks = blocks_of(model).values()
    return {
        "vision encoder": Flops(forward=shapes.encoder.flops * encoded),
        "resampler": resampler_flops(model, patches, checkpointing) * batch.media,
        "cross-attention": sum(
            (_block(block, batch, latents, model, checkpointing) for block in blocks), Flops()
        ),
        "language model": language_flops(model, batch.tokens, checkpointing) * batch.rows,
        "language model's head": head_flops(model) * batch.learned,
    }


def needed_flops(shapes: Shapes, batches: Iterable[MicroBatch], *, encodes: bool = True) -> int:
    """What forward and backward pass need for the real tokens and media of ``batches``.

    Each sequence is reckoned on its own, so padding counts for nothing, nor does what gradient
    checkpointing computes again.
    """
    head, needed = int(head_flops(shapes.model).total), 0
    sequences: Counter[tuple[int, int, int]] = Counter()
    for batch in batches:
        needed += head * batch.learned
        sequences.update((one.tokens, one.images, batch.frames) for one in batch.sequences)
    for (tokens, images, frames), count in sequences.items():
        needed += count * sequence_flops(shapes, tokens, images, frames, encodes)
    return needed


def sequence_flops(shapes: Shapes, tokens: int, images: int, frames: int, encodes: bool) -> int:
    """Of one sequence alone, forward and backward; the LM's head apart."""
    row = BatchShape(rows=1, tokens=tokens, images=images, media=images, frames=frames, learned=0)
    parts = batch_flops(shapes, row, checkpointing=False, encodes=encodes)
    return int(sum(part.total for part in parts.values()))


# ---------------------------------------------------------------------------- language model


def language_flops(
    model: FlamingoForConditionalGeneration, tokens: int, checkpointing: bool = False
) -> Flops:
    """The decoder's layers on one row; its head apart (:func:`head_flops`)."""
    total = Flops()
    products = 2 if model.config.trains_language_model else 1
    pairs = 4 * tokens * tokens * attention_width(model)  # queries with keys, then with values
    for layer in lm.decoder_layers(model.language_model):
        matrices = [2 * tokens * weight.numel() for weight in dense_weights(layer)]
        forward = sum(matrices) + pairs
        total += Flops(
            forward=forward,
            backward=products * sum(matrices) + 2 * pairs,
            # torch stops a recomputation at the last thing saved, before the last product.
            recomputed=(forward - matrices[-1]) * checkpointing,
        )
    return total


def head_flops(model: FlamingoForConditionalGeneration) -> Flops:
    """The LM's own head and the new tokens' rows at one position."""
    own = 2 * lm.output_head(model.language_model).weight.numel()
    new = 2 * model.new_tokens.output_rows.numel()
    products = 2 if model.config.trains_language_model else 1
    return Flops(forward=own + new, backward=products * own + 2 * new)


def attention_width(model: FlamingoForConditionalGeneration) -> int:
    """Heads times channels of a head in the language model."""
    config = model.language_model.config.get_text_config()
    heads = config.num_attention_heads
    return heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)


def dense_weights(layer: nn.Module) -> list[nn.Parameter]:
    """The matrices that every token is multiplied with, in order.

    Raises ``ValueError`` for a layer with weights of more axes (a mixture of experts).
    """
    weights = []
    for name, parameter in layer.named_parameters():
        if parameter.ndim > 2:
            raise ValueError(
                f"language model: expected layers of linears, to count what they compute, got "
                f"{name} of shape {tuple(parameter.shape)} in {type(layer).__name__}"
            )
        if parameter.ndim == 2:
            weights.append(parameter)
    return weights


# ---------------------------------------------------------------------------- what trains


def _trained(forward: int, *, input_gradient: bool = True) -> Flops:
    return Flops(forward=forward, backward=forward * (2 if input_gradient else 1))


def blocks_of(model: FlamingoForConditionalGeneration) -> dict[int, GatedCrossAttentionBlock]:
    """The gated blocks, by the decoder layer that each stands before."""
    blocks = model.cross_attention.items()
    return {int(index): cast(GatedCrossAttentionBlock, block) for index, block in blocks}


def latents_of(model: FlamingoForConditionalGeneration, patches: int) -> int:
    """Latents of a medium of ``patches`` tokens."""
    resampler = model.resampler
    if isinstance(resampler, PerceiverResampler | PoolingResampler):
        return model.config.resampler_options.num_latents
    return patches


def resampler_flops(
    model: FlamingoForConditionalGeneration, patches: int, checkpointing: bool = False
) -> Flops:
    """The resampler on one medium."""
    resampler = model.resampler
    if isinstance(resampler, IdentityResampler):
        return Flops()
    if isinstance(resampler, PoolingResampler):
        return _trained(2 * resampler.to_latents.weight.numel())
    total = Flops()
    for layer in resampler.layers:
        forward, last = _resampler_layer(model, layer, patches)
        total += _trained(forward) + Flops(recomputed=(forward - last) * checkpointing)
    return total


def _resampler_layer(
    model: FlamingoForConditionalGeneration, layer: Any, patches: int
) -> tuple[int, int]:
    """Forward operations of one layer, and those of its last product."""
    latents = latents_of(model, patches)
    feed_forward = layer.feed_forward
    last = 2 * latents * feed_forward.down.weight.numel()
    forward = 2 * latents * matrices(feed_forward)
    if isinstance(model.resampler, PerceiverResampler):
        attention, keys = layer.attention, patches + latents
        forward += 2 * latents * (attention.to_q.weight.numel() + attention.to_out.weight.numel())
        forward += 2 * keys * attention.to_kv.weight.numel()
        forward += 4 * latents * keys * attention.to_q.out_features
    return forward, last


def _block(
    block: GatedCrossAttentionBlock,
    batch: BatchShape,
    latents: int,
    model: FlamingoForConditionalGeneration,
    checkpointing: bool,
) -> Flops:
    """A gated block on a micro-batch; keys and values are projected once a medium."""
    attention, text = block.attention, batch.rows * batch.tokens
    forward = 2 * text * matrices(block.feed_forward)
    if batch.media:
        forward += 2 * text * (attention.to_q.weight.numel() + attention.to_out.weight.numel())
        # Media that a token is compared with: its own, or all of its row.
        read = 1 if model.visibility is MediaVisibility.immediate else batch.images
        forward += 4 * text * read * latents * attention.to_q.out_features
    projected = 2 * batch.media * latents * attention.to_kv.weight.numel()
    learns = any(True for _ in model.resampler.parameters())
    return (
        _trained(forward)
        + _trained(projected, input_gradient=learns)
        + Flops(recomputed=forward * checkpointing)
    )


def matrices(module: nn.Module) -> int:
    """Entries of all matrices."""
    return sum(parameter.numel() for parameter in _two_axes(module))


def _two_axes(module: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.ndim == 2)
