"""What a step is made of, in numbers: rows, lengths, media and learned tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flamingo.choices import Mixing
from flamingo.config import DataConfig, TrainingConfig
from flamingo.data.collate import collate
from flamingo.data.division import Division
from flamingo.training.batches import Steps, StepSource, division_of
from flamingo.training.loss import keep_mask
from flamingo.types import IGNORE_INDEX, Batch, Media, TokenizedSequence


@dataclass(frozen=True)
class BatchShape:
    """One micro-batch on one device."""

    rows: int
    tokens: int
    """Of a row, padding included: what is computed."""
    images: int
    """Media of a row, padding included: what text attends over."""
    media: int
    """Real media of all rows: what is encoded and resampled."""
    frames: int
    """Of a medium."""
    learned: int
    """Positions of all rows that the LM's head runs on."""
    packed: int | None = None
    """Sequences in all rows together; None: one in each."""


@dataclass(frozen=True)
class Workload:
    """Micro-batches of all devices over one or several steps."""

    batches: tuple[BatchShape, ...]
    steps: int
    """How many steps the batches make up."""
    origin: str
    """Where the numbers are from, in words."""

    def __post_init__(self) -> None:
        if not self.batches or self.steps < 1:
            raise ValueError(
                f"workload: expected at least one batch and one step, got {len(self.batches)} "
                f"batches and {self.steps} steps"
            )

    @property
    def sequences(self) -> float:
        """A step's, over all devices."""
        counts = (b.rows if b.packed is None else b.packed for b in self.batches)
        return sum(counts) / self.steps

    @property
    def tokens(self) -> float:
        """A step's, over all devices, padding included."""
        return sum(batch.rows * batch.tokens for batch in self.batches) / self.steps

    @property
    def media(self) -> float:
        """A step's real media, over all devices."""
        return sum(batch.media for batch in self.batches) / self.steps

    @property
    def learned(self) -> float:
        """A step's learned tokens, over all devices."""
        return sum(batch.learned for batch in self.batches) / self.steps

    @property
    def largest(self) -> BatchShape:
        """The micro-batch that needs most memory: most tokens."""
        return max(self.batches, key=lambda batch: (batch.rows * batch.tokens, batch.media))


@dataclass(frozen=True)
class SequenceShape:
    """A training sequence, in numbers."""

    tokens: int
    images: int


def assumed_workload(
    sequences: Sequence[SequenceShape],
    *,
    frames: int,
    learned: float,
    gpus: int,
    division: Division,
) -> Workload:
    """One step of ``sequences``, divided over devices, and there as ``division`` says.

    ``learned`` is the share of positions that are learned. Raises ``ValueError`` for fewer
    sequences than devices times micro-batches, and for longer ones than ``division`` takes.
    """
    parts = gpus * division.micro_batches
    if len(sequences) < parts:
        raise ValueError(
            f"sequences: expected at least one for each of {parts} micro-batches (gpus times "
            f"training.micro_batches), got {len(sequences)}"
        )
    # Division reads lengths alone; the number in a source's place says which sequence it is.
    rows = [
        (index, TokenizedSequence((0,) * shape.tokens, (IGNORE_INDEX,) * shape.tokens, ()))
        for index, shape in enumerate(sequences)
    ]
    batches = [
        _batch_of([[sequences[index] for index, _ in row] for row in part], frames, learned)
        for rank in range(gpus)
        for part in division(rows[rank::gpus])
    ]
    kinds = ", ".join(
        f"{sequences.count(shape)} of {shape.tokens} tokens and {shape.images} "
        f"image{'s' * (shape.images != 1)}"
        for shape in dict.fromkeys(sequences)
    )
    return Workload(
        tuple(batches),
        1,
        f"assumed: {kinds}; {frames} frame{'s' * (frames > 1)} an image, {learned:.0%} of the "
        "tokens learned",
    )


def _batch_of(rows: list[list[SequenceShape]], frames: int, learned: float) -> BatchShape:
    every = [shape for row in rows for shape in row]
    return BatchShape(
        rows=len(rows),
        tokens=max(sum(shape.tokens for shape in row) for row in rows),
        images=max(sum(shape.images for shape in row) for row in rows),
        media=sum(shape.images for shape in every),
        frames=frames,
        learned=round(sum(shape.tokens for shape in every) * learned),
        packed=len(every) if len(every) > len(rows) else None,
    )


def measured_workload(
    mixture: StepSource, training: TrainingConfig, *, world: int, steps: int
) -> Workload:
    """The first ``steps`` steps of a mixture as ``world`` processes would see them.

    Sequences are made and tokenised; no image is opened.
    """
    batches: list[BatchShape] = []
    for rank in range(world):
        data = Steps(mixture, _collate_without_media, division_of(training), rank, world)
        for index in range(steps):
            batches += map(batch_shape, data[index].micro_batches)
    return Workload(
        tuple(batches), steps, f"measured on {steps} steps of {', '.join(mixture.names)}"
    )


def batch_shape(batch: Batch) -> BatchShape:
    """A batch's numbers. Real media are told by their first value, which is 1."""
    media = batch.vision_features
    rows, tokens = batch.input_ids.shape
    return BatchShape(
        rows=rows,
        tokens=tokens,
        images=0 if media is None else media.shape[1],
        media=0 if media is None else int(media[:, :, 0].sum()),
        frames=1 if media is None else media.shape[2],
        learned=int(keep_mask(batch.labels).sum()),
        packed=None if batch.documents is None else int((batch.documents[:, -1] + 1).sum()),
    )


def _collate_without_media(rows: Sequence, sources: Sequence[int]) -> Batch:
    def ones(media: Sequence[Media]) -> torch.Tensor:
        return torch.ones(len(media), len(media[0].frames), 1, 1)

    return collate(rows, sources, pad_id=0, load_media=ones)


def sequences_of(config: DataConfig) -> int | None:
    """Sequences of a step, where the configuration's sources say so (in turn: their mean)."""
    counts: Sequence[int] = [source.sequences for source in config.sources]
    turns = len(counts) if config.mixing is Mixing.round_robin else 1
    return math.ceil(sum(counts) / turns) if counts else None
