"""A tiny run in which something goes wrong: imported by the tests, and run by them as a process.

``python failing_run.py <folder> <what> [<process>]``: ``<process>`` (default 0) is the one in which
``<what>`` happens during step 5.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tiny_run import tiny_config, tiny_parts

from flamingo.run_directory import RunDirectory
from flamingo.training import loop
from flamingo.training.batches import Steps
from flamingo.training.distributed import leave_processes
from flamingo.training.loop import TrainingResult, train

FAILING_STEP = 5


def failing_train(folder: Path, what: str, process: int = 0) -> TrainingResult:
    """Train with ``what`` going wrong; ``nothing``, and in other processes, all goes well."""
    config = tiny_config(folder, timeout_minutes=0.1 if what == "freeze" else 5.0)
    model, *others = tiny_parts(config)
    if int(os.environ.get("RANK", "0")) == process:
        match what:
            case "nan":
                _replace(loop, "batch_loss", lambda found: (found[0], found[1] * torch.nan))
            case "data":
                error = ValueError("source short: no such shard")
                _replace(Steps, "__getitem__", _raise(error), 6)  # the fifth is for validation
            case "disk":
                full = OSError(28, "No space left on device")
                _replace(loop, "save_checkpoint", _raise(full), 2)
            case "kill":
                _replace(loop, "batch_loss", _signal(signal.SIGKILL))
            case "freeze":
                _replace(loop, "batch_loss", _signal(signal.SIGSTOP))
            case "usr1":
                _replace(loop, "batch_loss", _signal(signal.SIGUSR1))
            case _:
                assert what == "nothing"
    return train(config, model, *others, RunDirectory.open(config))


def _replace(owner: object, name: str, after: Callable, call: int = FAILING_STEP) -> None:
    """``after`` gets what one call of ``owner.name`` returned."""
    original, calls = getattr(owner, name), []

    def replaced(*arguments, **options):
        calls.append(1)
        value = original(*arguments, **options)
        return after(value) if len(calls) == call else value

    setattr(owner, name, replaced)


def _raise(error: Exception) -> Callable:
    def after(_):
        raise error

    return after


def _signal(number: signal.Signals) -> Callable:
    return partial(_send, number)


def _send(number: signal.Signals, value: object) -> object:
    os.kill(os.getpid(), number)
    return value


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, what, *process = sys.argv[1:]
    result = failing_train(Path(folder), what, *map(int, process))
    leave_processes()
    sys.exit(0 if result.finished else 128 + (result.signal or 0))
