"""Time in alternation: A B C A B C ..., so that whatever drifts hits all alike."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What is timed. ``prepare`` is not, and gives ``call`` its argument anew in every round."""

    call: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None
    units: int = 1
    """By how many a call's time is divided: tokens, queries."""


@dataclass(frozen=True)
class Effort:
    """How often everything is timed. Runs of more than ``slow_seconds`` (the warm-up tells) take
    part in the first ``slow_rounds`` rounds alone."""

    rounds: int
    warmup: int
    slow_seconds: float
    slow_rounds: int


def alternate(
    runs: Mapping[str, Run],
    effort: Effort,
    device: torch.device,
    *,
    may_fail: Collection[str] = (),
    tell: Callable[[str], object] = lambda name: None,
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Seconds a unit of every run, by round; and of those that raised, what they raised.

    ``tell`` is given the name of each run that begins. One of ``may_fail`` that raises takes no
    further part; what others raise is raised.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    failed: dict[str, Exception] = {}
    slow: set[str] = set()
    for index in range(-effort.warmup, effort.rounds):
        for name, run in runs.items():
            if name in failed or (name in slow and index >= effort.slow_rounds):
                continue
            tell(name)
            try:
                taken = timed(run, device)
            except Exception as error:
                if name not in may_fail:
                    raise
                logger.debug("%s failed", name, exc_info=True)
                failed[name] = _without_frames(error)
            if name in failed:
                clear_device_cache(garbage_collection=True)
                continue
            if index >= 0:
                seconds[name].append(taken / run.units)
            elif taken > effort.slow_seconds:
                slow.add(name)
    return {name: own for name, own in seconds.items() if name not in failed}, failed


def _without_frames(error: Exception) -> Exception:
    """The error alone: its traceback would keep the tensors of the failed call alive."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def timed(run: Run, device: torch.device) -> float:
    """Seconds of one call, by CUDA's events on a GPU and by the clock elsewhere."""
    state = run.prepare()
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        run.call(state)
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    started = time.perf_counter()
    run.call(state)
    return time.perf_counter() - started
