"""What can end a run from outside, told with what to do next.

Nothing here repairs anything: a run goes on from its newest checkpoint by the same command. What
these errors add is the cause in words, and which checkpoint that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    """Another process of this run ended without a word, was not heard of for too long, or could not
    be reached."""


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
    text, words = str(error), _words(error)
    then = f"{last_good(folder)}; the same command continues."
    if _is_out_of_memory(error):
        return DeviceMemoryError(
            f"out of memory ({words}). This run can go on with "
            "training.gradient_checkpointing=true, and on several devices with "
            "training.sharding=full; a run of another name= can have more training.micro_batches "
            f"or a smaller data.max_tokens; {then}"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        cause = "the machine had too little memory: fewer data.workers need less"
        if "Bus error" in text:
            cause = (
                "/dev/shm, through which steps come, is too small for them: make it larger (of a "
                "container by --shm-size or --ipc=host); fewer data.workers need less, 0 none"
            )
        return DataWorkerError(
            f"data.workers: a process that prepares data died ({words}). Most often {cause}; {then}"
        )
    if isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in text):
        return LostProcessError(
            "another process of this run ended, was not heard of for training.timeout_minutes, or "
            f"could not be reached ({words}). What it wrote last says why; if it wrote nothing, "
            f"the machine or its scheduler killed it (memory, a lost device); {then}"
        )
    return error


def _words(error: Exception) -> str:
    """The first line of a message; of several processes' library also the last, with the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    several = isinstance(error, DistError) and len(lines) > 1
    return f"{lines[0]} ... {lines[-1]}" if several else lines[0]


def _is_out_of_memory(error: Exception) -> bool:
    """Of the CPU, the GPU's allocator, or what takes memory beside it (a context, NCCL)."""
    told = "out of memory" in str(error) or "DefaultCPUAllocator" in str(error)
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and told)


@contextmanager
def explaining(folder: Path) -> Iterator[None]:
    """What is raised inside comes out as :func:`explained` tells it."""
    try:
        yield
    except Exception as error:
        if (told := explained(error, folder)) is error:
            raise
        raise told from error


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
