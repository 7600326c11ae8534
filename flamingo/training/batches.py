"""The sequences of an optimiser step as micro-batches, ready for one process."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flamingo.config import TrainingConfig
from flamingo.data.cursor import Cursors
from flamingo.data.division import Division
from flamingo.data.open_files import AHEAD
from flamingo.data.packing import Collate, Rows, collate_packed
from flamingo.training.interrupt import SIGNALS
from flamingo.training.loss import learned_tokens
from flamingo.types import Batch


@runtime_checkable
class StepSource(Protocol):
    """What training needs of ``flamingo.data.mixture.Mixture``."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def loss_weights(self) -> Sequence[float]: ...
    @property
    def has_streams(self) -> bool: ...
    def step(self, index: int, rank: int = 0, world: int = 1) -> Rows:
        """This process's share of step ``index``: a pure function of its arguments."""
        ...

    def cursors(self, index: int, rank: int = 0, world: int = 1) -> Cursors:
        """Where that share leaves the streams that it came from, as pure a function."""
        ...

    def stream_state(self, cursors: Cursors) -> dict[str, Any]: ...
    def resume(self, state: Mapping[str, Any]) -> Cursors: ...


@dataclass(frozen=True, slots=True)
class Step:
    """This process's part of one optimiser step."""

    micro_batches: list[Batch]
    learned: Int[Tensor, " source"]
    """Learned tokens of each source in this part."""
    tokens: int
    images: int
    """Frames of media, padding not counted."""
    cursors: Cursors = field(default_factory=dict)
    """Where the streams stand after it. It comes with the step, because whoever prepares steps is
    ahead of who trains on them."""

    @property
    def padded_tokens(self) -> int:
        """What is computed for ``tokens``: with padding."""
        return sum(batch.input_ids.numel() for batch in self.micro_batches)


def division_of(settings: TrainingConfig) -> Division:
    """As the configuration says."""
    return Division(settings.micro_batches, settings.micro_batch_tokens, settings.packing)


class Steps(Dataset[Step]):
    """Steps by index, so that resuming is starting at another index."""

    def __init__(
        self, mixture: StepSource, collate: Collate, division: Division, rank: int, world: int
    ) -> None:
        self._mixture, self._collate = mixture, collate
        self._division, self._rank, self._world = division, rank, world

    def __getitem__(self, index: int) -> Step:
        rows = self._mixture.step(index, self._rank, self._world)
        return Step(
            micro_batches=[collate_packed(part, self._collate) for part in self._division(rows)],
            learned=learned_tokens(rows, len(self._mixture.names)),
            tokens=sum(len(row.input_ids) for _, row in rows),
            images=sum(len(medium.frames) for _, row in rows for medium in row.media),
            cursors=self._mixture.cursors(index, self._rank, self._world),
        )

    def iterate(self, indices: range, workers: int) -> Iterator[Step]:
        """The steps of ``indices`` in order, prepared ahead by ``workers`` processes (0: none)."""
        if workers == 0:
            return (self[index] for index in indices)
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=indices,
            num_workers=workers,
            prefetch_factor=AHEAD,
            worker_init_fn=_ignore_signals,
            # Its own generator: the loader draws a seed, and must not move the global one.
            generator=torch.Generator(),
        )
        return iter(loader)


def _ignore_signals(_: int) -> None:
    """Workers leave interruptions to the training process, which still needs them to stop well."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on ``device``, its media in fp32 (the cache holds half precision)."""

    def move(media: Tensor | None) -> Tensor | None:
        return None if media is None else media.to(device, non_blocking=True).float()

    return replace(
        batch,
        input_ids=batch.input_ids.to(device),
        attention_mask=batch.attention_mask.to(device),
        labels=batch.labels.to(device),
        source=batch.source.to(device),
        documents=None if batch.documents is None else batch.documents.to(device),
        vision_features=move(batch.vision_features),
        pixel_values=move(batch.pixel_values),
    )
