"""The machine's own speed, measured in the same process, and how much of it a run reaches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flamingo.benchmarking.counting import Counted
from flamingo.benchmarking.timing import Run, timed

REPEATS = 5


@dataclass(frozen=True, slots=True)
class Machine:
    """Peaks, the best of a few tries."""

    flops: float
    """A second, of a square matrix product in the benchmark's precision."""
    bytes: float
    """A second, of a copy: what is read and what is written."""


@dataclass(frozen=True, slots=True)
class Roof:
    """A run against the machine."""

    flops: float
    """Achieved, a second."""
    of_peak: float
    """As a part of the machine's."""
    of_roof: float
    """The time that its FLOPs, or (if that is longer) the bytes that it must move, would take at
    the machine's peaks, as a part of its time. Bytes are counted without a cache, so a run whose
    tensors stay in one can pass 1."""


def measure(device: torch.device, dtype: torch.dtype) -> Machine:
    """Time a matrix product and a copy on ``device``."""
    side, numbers = (8192, 2**29) if device.type == "cuda" else (2048, 2**26)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.ones(numbers, device=device, dtype=dtype)
    target = torch.empty_like(source)
    product = Run(lambda _: a @ b)
    copy = Run(lambda _: target.copy_(source))
    fastest = [min(timed(run, device) for _ in range(REPEATS)) for run in (product, copy)]
    return Machine(2 * side**3 / fastest[0], 2 * source.nbytes / fastest[1])


def roof(counted: Counted, seconds: float, machine: Machine) -> Roof:
    """Where a run of ``seconds`` a unit stands."""
    bound = max(counted.flops / machine.flops, counted.bytes / machine.bytes)
    achieved = counted.flops / seconds
    return Roof(achieved, achieved / machine.flops, bound / seconds)
