"""Time in alternation: A B C A B C ..., so that whatever drifts hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Run:
    """What is timed. ``prepare`` is not, and gives ``call`` its argument anew in every round."""

    call: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None
    units: int = 1
    """By how many a call's time is divided: tokens, queries."""


def alternate(
    runs: Mapping[str, Run],
    *,
    rounds: int,
    warmup: int,
    device: torch.device,
    after_each: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds a unit of every run, ``rounds`` times each, in turns; ``warmup`` rounds before."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(warmup + rounds):
        for name, run in runs.items():
            taken = timed(run, device)
            if index >= warmup:
                seconds[name].append(taken / run.units)
            after_each()
    return seconds


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


def rounds_paired(seconds: Mapping[str, Sequence[float]]) -> int:
    """How many rounds there are, the same for all."""
    (rounds,) = {len(own) for own in seconds.values()}
    return rounds
