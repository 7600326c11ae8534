"""How one process's sequences of a step become rows, and the rows micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from flamingo.data.packing import Rows, first_fit_decreasing
from flamingo.types import TokenizedSequence


@dataclass(frozen=True)
class Division:
    """Sequences to micro-batches: ``division(sequences)`` is a pure function.

    Each micro-batch is a list of rows, each row a list of sequences (one, unless they are packed).
    Every sequence is in one row of one micro-batch. Media of a micro-batch have the same number of
    frames, so that they are one tensor without padding: clips and still images are apart.
    """

    micro_batches: int = 1
    """A step in so many parts of like numbers of rows; in more where clips are apart."""
    micro_batch_tokens: int | None = None
    """Instead: in as many parts as it takes with at most so many tokens each, with padding."""
    packing: int | None = None
    """Pack sequences into rows of at most so many tokens. None: a row each."""

    def __call__(self, sequences: Rows) -> list[list[Rows]]:
        """Raises ``ValueError`` for a sequence that has more tokens than ``micro_batch_tokens`` or
        ``packing``, or media of different numbers of frames."""
        groups = [self._rows(group) for group in same_frames(sequences)]
        total = sum(map(len, groups))
        parts: list[list[Rows]] = []
        for rows in groups:
            if self.micro_batches > 1 or self.micro_batch_tokens is not None:
                # Rows of like length share a micro-batch: less padding.
                rows = sorted(rows, key=lambda row: -_tokens(row))
            if self.micro_batch_tokens is None:
                share = -(-len(rows) * self.micro_batches // total)
                bounds = [len(rows) * i // share for i in range(share + 1)]
            else:
                bounds = budget_bounds([_tokens(row) for row in rows], self.micro_batch_tokens)
            parts += [rows[a:b] for a, b in pairwise(bounds) if a < b]
        return parts

    def _rows(self, sequences: Rows) -> list[Rows]:
        if self.packing is None:
            return [[row] for row in sequences]
        groups = first_fit_decreasing([_tokens([row]) for row in sequences], self.packing)
        return [[sequences[index] for index in group] for group in groups]


def same_frames(sequences: Rows) -> list[Rows]:
    """``sequences`` by the number of frames of their media, fewest first; text goes with these.

    Raises ``ValueError`` for one with media of different numbers.
    """
    frames = [_frames(sequence) for _, sequence in sequences]
    numbers = sorted(set(frames) - {0}) or sorted(set(frames))
    return [
        [row for row, own in zip(sequences, frames, strict=True) if (own or numbers[0]) == number]
        for number in numbers
    ]


def budget_bounds(lengths: Sequence[int], budget: int) -> list[int]:
    """Where to cut rows of falling ``lengths`` so that each part, padded to its longest row, has at
    most ``budget`` tokens, in as few parts as possible.

    Raises ``ValueError`` for a length above ``budget``.
    """
    if lengths and lengths[0] > budget:
        raise ValueError(
            "training.micro_batch_tokens: expected at least as many tokens as the longest row has "
            f"({lengths[0]}), got {budget}"
        )
    bounds = [0]
    while bounds[-1] < len(lengths):
        start = bounds[-1]
        bounds.append(min(start + budget // lengths[start], len(lengths)))
    return bounds


def _tokens(row: Rows) -> int:
    return sum(len(sequence.input_ids) for _, sequence in row)


def _frames(sequence: TokenizedSequence) -> int:
    """Of each medium; 0 for text alone."""
    numbers = {len(medium.frames) for medium in sequence.media}
    if len(numbers) > 1:
        raise ValueError(
            "sequence: expected media of one number of frames (a batch is one tensor), got "
            f"{sorted(numbers)}"
        )
    return numbers.pop() if numbers else 0
