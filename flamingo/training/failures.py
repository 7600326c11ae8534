"""What can end a run from outside, told with what to do next.

Nothing here repairs anything: a run goes on from its newest checkpoint by the same command. What
these errors add is the cause in words, and which checkpoint that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch.distributed import DistError

from flamingo.training.checkpoint import latest_checkpoint
from flamingo.training.distributed import sum_over_processes

Item = TypeVar("Item")


class TrainingError(RuntimeError):
    """Training ended by something outside it. Nothing saved before is touched."""


class DataWorkerError(TrainingError):
    """A process that prepares data died."""


class DeviceMemoryError(TrainingError):
    """A device (or the machine) has too little memory."""


class LostProcessError(TrainingError):
    """Another process of this run ended without a word, or was not heard of for too long."""


class OtherProcessError(TrainingError):
    """Another process of this run says what went wrong; this one stops with it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """In place of a step: why there is none."""

    error: Exception


def until_failure(steps: Iterator[Item]) -> Iterator[Item | Failed]:
    """``steps``; what they raise comes as the last item, so that all processes can stop
    together."""
    try:
        yield from steps
    except Exception as error:
        yield Failed(error)


def last_good(folder: Path) -> str:
    """Where a run goes on, in words; ``folder`` has its checkpoints."""
    last = latest_checkpoint(folder)
    return f"the last good checkpoint is {last.path}" if last else "there is no checkpoint yet"


def explained(error: Exception, folder: Path) -> Exception:
    """``error`` as one of this file's where its cause is known, else as it is.

    ``folder`` has the run's checkpoints.
    """
    if isinstance(error, TrainingError):
        return error
    text = str(error).strip()
    words = text.splitlines()[0] if text else type(error).__name__
    then = f"{last_good(folder)}; the same command continues."
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in text:
        return DeviceMemoryError(
            f"out of memory ({words}). This run can go on with "
            "training.gradient_checkpointing=true, and on several devices with "
            "training.sharding=full; a run of another name= can have more training.micro_batches "
            f"or a smaller data.max_tokens; {then}"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return DataWorkerError(
            f"data.workers: a process that prepares data died ({words}). Most often the machine "
            f"had too little memory: fewer data.workers need less; {then}"
        )
    if isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in text):
        return LostProcessError(
            f"another process of this run ended, or was not heard of for training.timeout_minutes "
            f"({words}). What it wrote last says why; if it wrote nothing, the machine or its "
            f"scheduler killed it (memory, a lost device); {then}"
        )
    return error


def all_or_none(failure: Exception | None, accelerator: Accelerator, who: str) -> None:
    """Go on where no process has a ``failure``; else raise it there, and on the others too.

    Every process must call it. Raises :class:`OtherProcessError`, which says ``who`` could not.
    """
    own = torch.tensor([int(failure is not None)], device=accelerator.device)
    failures = int(sum_over_processes(own, accelerator))
    if failure is not None:
        raise failure
    if failures:
        raise OtherProcessError(f"{who} could not go on: see its message")
