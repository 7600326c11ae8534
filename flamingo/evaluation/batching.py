"""Batches that shrink when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from flamingo.types import TokenizedSequence

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Run = Callable[[Sequence[int], int], list[Result]]
"""Results of the prompts with these indices, computed in forward passes of at most so many rows."""


def longest_first(prompts: Sequence[TokenizedSequence]) -> list[int]:
    """Indices of ``prompts``, longest first: little padding, and the largest batch at once."""
    return sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].input_ids), i))


def in_batches(
    order: Sequence[int],
    batch_size: int,
    run: Run[Result],
    rows: Callable[[Sequence[int]], int] = len,
) -> Iterator[tuple[int, Result]]:
    """Every index of ``order`` with its result, as they come, at most ``batch_size`` at a time.

    A batch that runs out of memory is halved and run again, and the smaller size holds from then
    on; each new size is logged. ``rows`` says how many rows a batch could fill at most. Raises
    ``torch.OutOfMemoryError`` where a single row does not fit, ``ValueError`` for a batch size
    below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    start, size = 0, batch_size
    while start < len(order):
        part = order[start : start + size]
        results, error = _attempt(run, part, size)
        if results is not None:
            start += len(part)
            yield from zip(part, results, strict=True)
            continue
        filled = min(size, rows(part))
        if filled == 1:
            raise torch.OutOfMemoryError(
                "batch_size: a single row does not fit into memory; expected a smaller model, a "
                f"lower precision, fewer shots, candidates or beams ({error})"
            )
        size = filled // 2
        clear_device_cache(garbage_collection=True)
        logger.warning("out of memory with %d rows: going on with %d at a time", filled, size)


def _attempt(run: Run[Result], part: Sequence[int], size: int) -> tuple[list[Result] | None, str]:
    """The results, or None and the message where memory ran out.

    The error itself ends here: its traceback would keep the batch's tensors alive.
    """
    try:
        return run(part, size), ""
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
            raise
        return None, str(error)
