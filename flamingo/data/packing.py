"""Several sequences side by side in one row, as documents that do not see each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from flamingo.types import IGNORE_INDEX, Batch, TokenizedSequence

Rows = list[tuple[int, TokenizedSequence]]
"""Sequences, each with the index of its source. As documents: those that share a row."""
Collate = Callable[[Sequence[TokenizedSequence], Sequence[int]], Batch]
"""Turns sequences and their sources into a batch, padded on the right."""


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of ``lengths`` in groups whose sums are at most ``capacity``.

    From the longest on (of equal ones the first), each goes into the first group with room for it.
    That takes at most 11/9 of the fewest possible groups, plus 6/9 (Dósa 2007, "The Tight Bound of
    First Fit Decreasing Bin-Packing Algorithm").

    Raises ``ValueError`` for a length above ``capacity``.
    """
    if lengths and max(lengths) > capacity:
        raise ValueError(
            "training.packing: expected at least as many tokens as the longest sequence has "
            f"({max(lengths)}), got {capacity}"
        )
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        group = next((g for g, left in enumerate(room) if left >= length), len(groups))
        if group == len(groups):
            groups.append([])
            room.append(capacity)
        groups[group].append(index)
        room[group] -= length
    return groups


def collate_packed(rows: Sequence[Rows], collate: Collate) -> Batch:
    """A batch of rows that each hold one or several documents.

    Each token has its document's number and source. ``documents`` is ``None`` if every row has one
    document only.
    """
    joined = [_joined([document for _, document in row]) for row in rows]
    batch = collate(joined, [row[0][0] for row in rows])
    if all(len(row) == 1 for row in rows):
        return batch
    width = batch.input_ids.shape[1]
    sources = [_by_token(row, [source for source, _ in row], width) for row in rows]
    numbers = [_by_token(row, range(len(row)), width) for row in rows]
    return replace(batch, source=torch.stack(sources), documents=torch.stack(numbers))


def _joined(documents: Sequence[TokenizedSequence]) -> TokenizedSequence:
    """The documents as one sequence. No first token is learned: the token in front of it, which
    would predict it, is another document's."""
    return TokenizedSequence(
        input_ids=tuple(token for document in documents for token in document.input_ids),
        labels=tuple(
            label for document in documents for label in (IGNORE_INDEX, *document.labels[1:])
        ),
        media=tuple(medium for document in documents for medium in document.media),
    )


def _by_token(row: Rows, values: Sequence[int], width: int) -> Int[Tensor, " token"]:
    """Each document's value at each of its tokens; padding has the last one's."""
    counts = [len(document.input_ids) for _, document in row]
    counts[-1] += width - sum(counts)
    return torch.tensor(values).repeat_interleave(torch.tensor(counts))
