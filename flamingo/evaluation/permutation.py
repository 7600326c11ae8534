"""Paired tests between two runs on the same queries, by exchanging their labels image by image.

If the runs are interchangeable, exchanging their predictions on any image gives data as likely as
those observed. The queries of an image are exchanged together, as they are not independent
(``scipy.stats.permutation_test`` knows no clusters). Same seed and order of queries, same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from flamingo.evaluation.clusters import ROUNDING, Clusters, blocks, paired_differences

SwappedDifference = Callable[[Bool[np.ndarray, " query"]], float]
"""First run's metric minus the second's, their predictions exchanged where the mask holds."""


@dataclass(frozen=True, slots=True)
class Permutation:
    """First minus second, and the two-sided p-value over ``arrangements`` of the runs' labels.

    ``exact``: they are all there are, not a sample.
    """

    difference: float
    p_value: float
    n: int
    clusters: int
    arrangements: int
    exact: bool


def paired_permutation(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    draws: int = 10_000,
) -> Permutation:
    """Sign-flip test of no difference: an image's differences are flipped together or not at all.

    The statistic is ``|sum of first - second|``. Clusters whose differences cancel change nothing
    and are set aside. All ``2 ** c`` flips of the other ``c`` are counted if these are at most
    ``draws``; else a random sample, ``p = (1 + at least as extreme) / (1 + draws)`` (Phipson &
    Smyth 2010). With yes-no scores and an image for each query this is McNemar's exact test.
    Raises ``ValueError`` as :func:`flamingo.evaluation.resampling.bootstrap_mean` does.
    """
    grouped = Clusters.of(clusters)
    differences = paired_differences(first, second, grouped)
    sums = grouped.sums(differences)
    tolerance = ROUNDING * np.abs(differences).sum()
    moving = sums[np.abs(sums) > tolerance]
    threshold = abs(moving.sum()) - tolerance
    exact = 2 ** len(moving) <= draws
    total = extreme = 0
    for flips in _flips(len(moving), exact, seed, draws):
        extreme += int((np.abs(np.where(flips, -1.0, 1.0) @ moving) >= threshold).sum())
        total += len(flips)
    return Permutation(
        difference=float(differences.mean()),
        p_value=_p_value(extreme, total, exact),
        n=grouped.queries,
        clusters=len(grouped),
        arrangements=total,
        exact=exact,
    )


def paired_permutation_metric(
    difference: SwappedDifference,
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    draws: int = 1_000,
) -> Permutation:
    """Approximate randomisation for a corpus metric (Noreen 1989; Riezler & Maxwell 2005).

    A cluster's predictions are exchanged together or not at all. Exact under the same condition as
    :func:`paired_permutation`. Raises ``ValueError`` without queries, or if a difference is NaN.
    """
    grouped = Clusters.of(clusters)
    observed = difference(np.zeros(grouped.queries, dtype=bool))
    exact = 2 ** len(grouped) <= draws
    values = np.array(
        [
            difference(flipped[grouped.code])
            for flips in _flips(len(grouped), exact, seed, draws)
            for flipped in flips
        ]
    )
    if math.isnan(observed) or np.isnan(values).any():
        raise ValueError("difference: expected a number for each arrangement, got NaN")
    extreme = int((np.abs(values) >= abs(observed) * (1 - ROUNDING)).sum())
    return Permutation(
        difference=observed,
        p_value=_p_value(extreme, len(values), exact),
        n=grouped.queries,
        clusters=len(grouped),
        arrangements=len(values),
        exact=exact,
    )


def _flips(
    count: int, exact: bool, seed: int, draws: int
) -> Iterator[Bool[np.ndarray, "arrangement cluster"]]:
    """Which clusters are flipped: every possibility once, or ``draws`` at random."""
    if exact:
        yield (np.arange(2**count)[:, None] >> np.arange(count)) & 1 == 1
        return
    generator = np.random.default_rng(seed)
    for rows in blocks(draws, count):
        yield generator.integers(0, 2, size=(rows, count), dtype=np.int8) == 1


def _p_value(extreme: int, total: int, exact: bool) -> float:
    """A sample counts the observation as one more arrangement, so that no p-value is zero."""
    return extreme / total if exact else (1 + extreme) / (1 + total)
