"""The plan against reality: real steps of a configuration's model on the device at hand.

Weights are random, so none are needed; operations, bytes and seconds do not depend on their values.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flamingo.backbones.attention import choose_training_attention
from flamingo.backbones.precision import preferred_dtype, resolve_dtype
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.planning.devices import device_peak
from flamingo.planning.flops import Flops, batch_flops, needed_flops
from flamingo.planning.memory import Layout, device_memory
from flamingo.planning.options import PlanConfig
from flamingo.planning.shapes import Shapes, build_shapes, empty_encoder, empty_flamingo
from flamingo.planning.workload import BatchShape, MicroBatch
from flamingo.training.loss import batch_loss, keep_mask
from flamingo.training.optim import build_optimizer, clip_gradients
from flamingo.types import IGNORE_INDEX, Batch


@dataclass(frozen=True)
class Pair:
    """One number, as planned and as it is."""

    planned: int | float
    measured: int | float


@dataclass(frozen=True)
class Trial:
    """A micro-batch on one device: forward, backward, clipping and optimiser step."""

    device: str
    dtype: str
    batch: MicroBatch
    flops: dict[str, Pair]
    """Forward; backward, with what checkpointing computes again. Measured by torch's counter."""
    bytes: dict[str, Pair]
    """By part. Activations are those of a forward pass without checkpointing up to the head, as
    autograd keeps them; on CUDA there is also the most that was allocated at any time."""
    steps: int
    seconds: float
    needed: float
    """Operations that the micro-batch's real tokens and media need, as planned: of MFU."""
    peak: float | None
    """Operations a second that the device can do; None: not known."""


def trial_values(trial: Trial) -> dict[str, Any]:
    """A trial as JSON values."""
    return asdict(trial)


def run_trial(config: PlanConfig, batch: MicroBatch, device: torch.device) -> Trial:
    """``config.trial_steps`` steps of ``batch`` on ``device``, after one that does not count."""
    dtype = resolve_dtype(config.training.precision, device)
    shapes = build_shapes(config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bench = _Bench(config, shapes, batch, device, dtype)
        bench.step()
        seconds = [bench.timed_step() for _ in range(config.trial_steps)]
        flops = bench.counted_step()
        measured = bench.bytes()
    checkpointing = config.training.gradient_checkpointing
    encodes = not config.data.cache_features
    parts = sum(batch_flops(shapes, bench.shape, checkpointing, encodes).values(), Flops())
    layout = Layout(1, False, checkpointing, dtype, vision_dtype=preferred_dtype(device))
    given = config.peak_tflops
    return Trial(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        dtype=str(dtype).removeprefix("torch."),
        batch=bench.shape,
        flops={
            "forward": Pair(parts.forward, flops[0]),
            "backward": Pair(parts.backward + parts.recomputed, flops[1]),
        },
        bytes=_beside(shapes, bench.shape, layout, measured),
        steps=config.trial_steps,
        seconds=statistics.median(seconds),
        needed=float(needed_flops(shapes, [bench.shape], encodes=encodes)),
        peak=device_peak(device, dtype) if given is None else given * 1e12,
    )


def _beside(
    shapes: Shapes, batch: BatchShape, layout: Layout, measured: dict[str, int]
) -> dict[str, Pair]:
    """Planned bytes beside the measured ones, by the names of the latter."""
    planned = device_memory(shapes, batch, layout)
    kept = device_memory(shapes, batch, replace(layout, checkpointing=False))
    planned["activations"] = kept["activations"] + kept["autocast's copies"]
    planned["most allocated"] = sum(device_memory(shapes, batch, layout).values())
    return {name: Pair(planned[name], size) for name, size in measured.items()}


class _Bench:
    """The model, its optimiser and one batch."""

    def __init__(
        self,
        config: PlanConfig,
        shapes: Shapes,
        batch: MicroBatch,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._settings, self._device, self._dtype = config.training, device, dtype
        self._model = empty_flamingo(config, shapes.encoder.dim, device=device, dtype=dtype)
        choose_training_attention(self._model.language_model, device)
        tokens, pixels = empty_encoder(config.vision, device=device)
        vision_dtype = preferred_dtype(device)
        self._encoder = tokens.to(vision_dtype).requires_grad_(False).eval()
        self._model.train()
        self._parameters = self._model.trainable_parameters()
        self._optimizer = build_optimizer(self._settings, self._model, self._parameters)
        self._batch = random_batch(self._model, shapes, batch, device)
        self._images = None
        if not config.data.cache_features:
            size = (batch.media * batch.frames, 3, pixels, pixels)
            self._images = torch.randn(size, device=device, dtype=vision_dtype)
        self.shape = replace(batch, learned=int(keep_mask(self._batch.labels).sum()))
        if self._settings.gradient_checkpointing:
            self._model.gradient_checkpointing_enable({"use_reentrant": False})

    def step(self) -> None:
        """What training does with a micro-batch, and a step of the optimiser."""
        self._optimizer.zero_grad(set_to_none=True)
        self._loss().backward()
        clip_gradients(self._parameters.values(), self._settings.clip_norm)
        self._optimizer.step()

    def timed_step(self) -> float:
        self._wait()
        began = time.perf_counter()
        self.step()
        self._wait()
        return time.perf_counter() - began

    def counted_step(self) -> tuple[int, int]:
        """Operations of forward and of backward, as torch counts what is dispatched."""
        forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
        self._optimizer.zero_grad(set_to_none=True)
        with forward:
            loss = self._loss()
        with backward:
            loss.backward()
        return forward.get_total_flops(), backward.get_total_flops()

    def bytes(self) -> dict[str, int]:
        """After a counted step: its gradients are there."""
        trained = list(self._parameters.values())
        names = set(self._parameters)
        own = [p for name, p in self._model.named_parameters() if name not in names]
        states = [value for state in self._optimizer.state.values() for value in state.values()]
        sizes = {
            "frozen weights": _bytes([*own, *self._encoder.parameters()]),
            "trained weights, fp32": _bytes(trained),
            "gradients": _bytes([p.grad for p in trained if p.grad is not None]),
            "Adam states": _bytes(states),
        }
        if self._device.type == "cuda":
            sizes["most allocated"] = torch.cuda.max_memory_allocated(self._device)
        if self._settings.gradient_checkpointing:
            self._model.gradient_checkpointing_disable()
        sizes["activations"] = kept_bytes(self._model, self._hidden)
        return sizes

    def _loss(self) -> Tensor:
        self._encode()
        with self._autocast():
            weights = torch.ones(1, device=self._device) / self.shape.learned
            return batch_loss(self._model, self._batch, weights)[0]

    def _hidden(self) -> Tensor:
        """Logits of one position: all but the head and the loss."""
        keep = torch.zeros_like(self._batch.input_ids, dtype=torch.bool)
        keep[0, 0] = True
        with self._autocast():
            return self._model(
                input_ids=self._batch.input_ids,
                attention_mask=self._batch.attention_mask,
                vision_features=self._batch.vision_features,
                logits_to_keep=keep,
            ).logits

    def _encode(self) -> None:
        """The images' share of a step; what comes out is not looked at."""
        if self._images is not None and len(self._images):
            with torch.no_grad():
                self._encoder(self._images)

    def _autocast(self) -> torch.autocast:
        enabled = self._dtype is not torch.float32
        return torch.autocast(self._device.type, self._dtype, enabled=enabled)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def random_batch(
    model: FlamingoForConditionalGeneration,
    shapes: Shapes,
    shape: BatchShape,
    device: torch.device,
) -> Batch:
    """A batch of ``shape`` with random ids and features, its images spread over its rows.

    A row's first token cannot be learned, so there may be fewer learned tokens than asked for.
    """
    rows, tokens = shape.rows, shape.tokens
    ids = torch.randint(model.config.image_token_id, (rows, tokens), device=device)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for row in range(rows):
        learned = min(tokens - 1, _share(shape.learned, rows, row))
        labels[row, tokens - learned :] = ids[row, tokens - learned :]
        media = _share(shape.media, rows, row)
        ids[row, [tokens * i // media for i in range(media)]] = model.config.image_token_id
    features = None
    if shape.images:
        size = (rows, shape.images, shape.frames, shapes.encoder.patches, shapes.encoder.dim)
        features = torch.randn(size, device=device)
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=labels,
        source=torch.zeros_like(ids),
        vision_features=features,
    )


def _share(total: int, rows: int, row: int) -> int:
    return total * (row + 1) // rows - total * row // rows


def kept_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """What autograd keeps of a forward pass, each storage once, weights and buffers apart."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = forward()
    assert graph.requires_grad
    return sum(size for size, _ in kept.values())


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)
