"""Medians, quartiles and ratios of rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the rounds of one run."""

    least: float
    lower: float
    median: float
    upper: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Quartiles as numpy's default has them; raises ``ValueError`` for no values."""
        if not values:
            raise ValueError("spread: expected at least one round, got none")
        lower, median, upper = (
            statistics.quantiles(values, n=4, method="inclusive")
            if len(values) > 1
            else [values[0]] * 3
        )
        return cls(min(values), lower, median, upper, len(values))


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of rounds' ratios, between two of them that hold it with ``coverage``."""

    median: float
    low: float
    high: float
    coverage: float


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """``over / under`` round by round, as far as both go.

    The interval is the order statistics' (distribution-free, by the binomial of signs): the
    narrowest pair of them, symmetric, that holds the median with at least :data:`LEVEL`, or the
    least and the greatest where there are too few rounds for that (under six); ``coverage`` says
    which. Raises ``ValueError`` without a common round.
    """
    ratios = sorted(a / b for a, b in zip(over, under, strict=False))
    if not ratios:
        raise ValueError("ratio: expected a common round, got none")
    n, dropped = len(ratios), 0
    while 2 * (dropped + 1) < n and _coverage(n, dropped + 1) >= LEVEL:
        dropped += 1
    median = statistics.median(ratios)
    return Ratio(median, ratios[dropped], ratios[n - 1 - dropped], _coverage(n, dropped))


def _coverage(n: int, dropped: int) -> float:
    """That the median lies between the order statistics left when ``dropped`` go at each end."""
    return 1 - 2 * sum(comb(n, k) for k in range(dropped + 1)) / 2**n
