"""The operations that a run's batches need and the peak of its devices: for MFU while training."""

from __future__ import annotations

import logging
from functools import lru_cache, partial

import torch
from jaxtyping import Bool
from torch import Tensor

from flamingo.backbones.precision import resolve_dtype
from flamingo.config import RunConfig
from flamingo.planning.devices import device_peak
from flamingo.planning.flops import head_flops, sequence_flops
from flamingo.planning.shapes import Shapes, build_shapes
from flamingo.training.loss import keep_mask
from flamingo.training.timing import Utilisation
from flamingo.types import Batch

logger = logging.getLogger(__name__)

ROWS = 4096
"""Rows of different lengths whose operations are remembered."""


class ModelFlops:
    """``flops(batch)``: what forward and backward pass need for the real tokens and media.

    As the plan reckons it (:func:`flamingo.planning.flops.needed_flops`): each document on its
    own, so padding counts for nothing, nor does what gradient checkpointing computes again. Images
    count as far as they are encoded: with cached features they are not.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._head = int(head_flops(shapes.model).total)
        self._row = lru_cache(ROWS)(partial(sequence_flops, shapes))

    def __call__(self, batch: Batch) -> int:
        media = batch.vision_features if batch.pixel_values is None else batch.pixel_values
        frames = 1 if media is None else media.shape[2]
        real = batch.attention_mask.bool()
        is_image = (batch.input_ids == self._shapes.model.config.image_token_id) & real
        counts = zip(
            *(_by_document(batch, chosen) for chosen in (real, is_image)),
            strict=True,
        )
        encodes = batch.pixel_values is not None
        rows = sum(
            self._row(tokens, images, frames, encodes) for tokens, images in counts if tokens
        )
        return rows + self._head * int(keep_mask(batch.labels).sum())


def _by_document(batch: Batch, chosen: Bool[Tensor, "batch token"]) -> list[int]:
    """How many tokens are chosen, in each document of each row."""
    if batch.documents is None:
        return chosen.sum(1).tolist()
    width = int(batch.documents.max()) + 1
    rows = torch.arange(len(chosen), device=chosen.device)[:, None]
    numbers = (rows * width + batch.documents)[chosen]
    return torch.bincount(numbers, minlength=len(chosen) * width).tolist()


def run_utilisation(config: RunConfig, device: torch.device) -> Utilisation | None:
    """What a run's MFU is reckoned with, on devices like ``device``.

    The model's shapes are built anew from the configuration, without weights, so that nothing that
    is done to the real one (sharding, compiling) matters. The peak is ``tracking.peak_tflops``,
    else the device's own. Where operations or peak are not known, a log line says so.
    """
    try:
        shapes = build_shapes(config)
        flops = ModelFlops(shapes)
        flops._row(1, 1, 1, True)  # refuses layers that cannot be counted
    except ValueError as error:
        logger.warning("no operations a second and no MFU will be logged: %s", error)
        return None
    given = config.tracking.peak_tflops
    dtype = resolve_dtype(config.training.precision, device)
    peak = device_peak(device, dtype) if given is None else given * 1e12
    if peak is None:
        logger.warning(
            "no MFU will be logged: the peak of this device in %s is not known; "
            "tracking.peak_tflops says it",
            dtype,
        )
    return Utilisation(flops, peak)
