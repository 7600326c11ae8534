"""What a step is made of, in numbers: rows, lengths, media and learned tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import ge

from flamingo.config import TrainingConfig
from flamingo.data.division import Division
from flamingo.data.packing import Rows
from flamingo.training.batches import StepSource, division_of
from flamingo.types import IGNORE_INDEX, TokenizedSequence


@dataclass(frozen=True)
class BatchShape:
    """What is computed for one micro-batch on one device."""

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


@dataclass(frozen=True)
class SequenceShape:
    """A training sequence, in numbers."""

    tokens: int
    images: int


@dataclass(frozen=True)
class MicroBatch(BatchShape):
    """What is computed, and for which sequences."""

    sequences: tuple[SequenceShape, ...]
    """Of all rows; packed ones share a row."""


@dataclass(frozen=True)
class Workload:
    """Micro-batches of all devices over one or several steps."""

    batches: tuple[MicroBatch, ...]
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
        return sum(len(batch.sequences) for batch in self.batches) / self.steps

    @property
    def tokens(self) -> float:
        """A step's, over all devices, padding not counted."""
        sequences = (sequence for batch in self.batches for sequence in batch.sequences)
        return sum(sequence.tokens for sequence in sequences) / self.steps

    @property
    def padded_tokens(self) -> float:
        """What is computed for them: with padding."""
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
    def largest(self) -> tuple[MicroBatch, ...]:
        """Those that may need most memory: no other has as much or more of all that takes some."""
        kept: dict[tuple[int, ...], MicroBatch] = {}
        by_size = {
            (
                batch.rows * batch.tokens,
                batch.tokens,
                batch.media,
                batch.frames,
                batch.learned,
            ): batch
            for batch in self.batches
        }
        for size in sorted(by_size, reverse=True):  # what has more of all comes before
            if not any(all(map(ge, other, size)) for other in kept):
                kept[size] = by_size[size]
        return tuple(kept.values())


def assumed_workload(
    steps: Sequence[Sequence[SequenceShape]],
    *,
    frames: int,
    learned: float,
    gpus: int,
    division: Division,
) -> Workload:
    """Steps of sequences, each divided over devices, and there as ``division`` says.

    ``learned`` is the share of positions that are learned. Raises ``ValueError`` for fewer
    sequences in a step than devices, and for longer ones than ``division`` takes.
    """
    batches: list[MicroBatch] = []
    for step in steps:
        if len(step) < gpus:
            raise ValueError(
                f"sequences: expected at least one a device and step, got {len(step)} for "
                f"gpus={gpus}"
            )
        for rank in range(gpus):
            batches += _assumed(step[rank::gpus], frames, learned, division)
    sequences = [sequence for step in steps for sequence in step]
    kinds = ", ".join(
        f"{sequences.count(shape)} of {shape.tokens} tokens and {shape.images} "
        f"image{'s' * (shape.images != 1)}"
        for shape in dict.fromkeys(sequences)
    )
    taken = f" for {len(steps)} steps" if len(steps) > 1 else ""
    return Workload(
        tuple(batches),
        len(steps),
        f"assumed{taken}: {kinds}; {frames} frame{'s' * (frames > 1)} an image, {learned:.0%} of "
        "the tokens learned",
    )


def _assumed(
    sequences: Sequence[SequenceShape], frames: int, learned: float, division: Division
) -> Iterator[MicroBatch]:
    """Micro-batches of one device in one step."""
    # Division reads lengths alone; the number in a source's place says which sequence it is.
    rows = [
        (index, TokenizedSequence((0,) * shape.tokens, (IGNORE_INDEX,) * shape.tokens, ()))
        for index, shape in enumerate(sequences)
    ]
    for part in division(rows):
        shapes = [[sequences[index] for index, _ in row] for row in part]
        tokens = sum(sequence.tokens for row in shapes for sequence in row)
        yield _micro_batch(shapes, frames, round(tokens * learned))


def measured_workload(
    mixture: StepSource, training: TrainingConfig, *, world: int, steps: int
) -> Workload:
    """The first ``steps`` steps of a mixture as ``world`` processes would see them.

    Sequences are made and tokenised; no image is opened.
    """
    division = division_of(training)
    batches = [
        _measured(part)
        for rank in range(world)
        for index in range(steps)
        for part in division(mixture.step(index, rank, world))
    ]
    return Workload(
        tuple(batches), steps, f"measured on {steps} steps of {', '.join(mixture.names)}"
    )


def _measured(rows: list[Rows]) -> MicroBatch:
    every = [sequence for row in rows for _, sequence in row]
    shapes = [[SequenceShape(len(s.input_ids), len(s.media)) for _, s in row] for row in rows]
    # The first token of a sequence is predicted by nothing.
    learned = sum(label != IGNORE_INDEX for s in every for label in s.labels[1:])
    frames = max((len(medium.frames) for s in every for medium in s.media), default=1)
    return _micro_batch(shapes, frames, learned)


def _micro_batch(rows: list[list[SequenceShape]], frames: int, learned: int) -> MicroBatch:
    every = tuple(sequence for row in rows for sequence in row)
    return MicroBatch(
        rows=len(rows),
        tokens=max(sum(sequence.tokens for sequence in row) for row in rows),
        images=max(sum(sequence.images for sequence in row) for row in rows),
        media=sum(sequence.images for sequence in every),
        frames=frames,
        learned=learned,
        sequences=every,
    )
