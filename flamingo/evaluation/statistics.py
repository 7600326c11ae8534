"""Means with standard errors clustered by image.

Queries on one image are not independent. With clusters ``c`` of queries ``i`` and ``n`` queries,

    SE^2 = G / (G - 1) * sum_c (sum_{i in c} (s_i - mean))^2 / n^2

(Miller 2024, "Adding Error Bars to Evals", section 2.2, with the usual small-sample factor of the
cluster-robust estimator for ``G`` clusters). If every query has its own image this is the textbook
standard error of the mean.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist

import numpy as np

from flamingo.evaluation.clusters import ROUNDING

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over queries with its 95 % interval. NaN standard error: a single cluster."""

    mean: float
    standard_error: float
    low: float
    high: float
    n: int
    clusters: int


def clustered_standard_error(scores: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean of ``scores``, NaN if there is only one cluster."""
    mean = math.fsum(scores) / len(scores)
    sums: dict[Hashable, float] = defaultdict(float)
    for score, cluster in zip(scores, clusters, strict=True):
        sums[cluster] += score - mean
    groups = len(sums)
    if groups < 2:
        return math.nan
    variance = groups / (groups - 1) * math.fsum(s * s for s in sums.values()) / len(scores) ** 2
    return math.sqrt(variance)


def estimate(scores: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Mean of scores in [0, 1], with Wilson's interval at the effective sample size.

    The effective size is that of independent yes-no scores with the same standard error, times
    ``(t[n - 1] / t[G - 1])^2``, quantiles of Student's t: what few clusters say of their own spread
    (Korn & Graubard 1998, whose interval is Clopper's and Pearson's). With one query an image it
    is Wilson's own. Unlike mean +- t SE the interval stays within [0, 1] and keeps a width when
    every answer is right, or wrong. None (NaN) for a mean between 0 and 1 whose error is 0, as
    where all answers are worth the same part of 1: nothing tells how far another could be. Raises
    ``ValueError`` without scores.
    """
    if not scores:
        raise ValueError("scores: expected at least one, got none")
    mean = math.fsum(scores) / len(scores)
    error = clustered_standard_error(scores, clusters)
    return bounded_estimate(mean, error, len(scores), len(set(clusters)))


def bounded_estimate(value: float, error: float, n: int, clusters: int) -> Estimate:
    """A statistic in [0, 1] with its standard error: Wilson's interval as in :func:`estimate`.

    All NaN where the value is.
    """
    if math.isnan(value):
        return Estimate(value, math.nan, math.nan, math.nan, n, clusters)
    if is_zero(error) and 0 < value < 1:
        return Estimate(value, error, math.nan, math.nan, n, clusters)
    low, high = _wilson(value, _effective_size(value, error, n, clusters))
    return Estimate(value, error, low, high, n, clusters)


def mean_estimate(scores: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Mean of scores of any range; the interval is mean +- t[G - 1] SE.

    Raises ``ValueError`` without scores.
    """
    if not scores:
        raise ValueError("scores: expected at least one, got none")
    mean = math.fsum(scores) / len(scores)
    error = clustered_standard_error(scores, clusters)
    groups = len(set(clusters))
    half = half_width(error, groups - 1.0)
    return Estimate(mean, error, mean - half, mean + half, len(scores), groups)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    share: bool = False,
) -> Estimate:
    """Mean of ``first - second`` over the same queries; the interval is mean +- t[G - 1] SE.

    None (NaN) where the error is 0, as where all differences are equal: nothing tells how far
    another could be. Of a ``share``'s scores, which are in [0, 1], it stays within [-1, 1].
    """
    found = mean_estimate([a - b for a, b in zip(first, second, strict=True)], clusters)
    if is_zero(found.standard_error):
        return replace(found, low=math.nan, high=math.nan)
    low, high = difference_range(found.low, found.high) if share else (found.low, found.high)
    return replace(found, low=low, high=high)


def half_width(error: float, degrees_of_freedom: float) -> float:
    """Half of the 95 % interval by Student's t; 0 or NaN as the standard ``error`` is."""
    return error * student_quantile(0.975, degrees_of_freedom) if error > 0 else error


def difference_range(low: float, high: float) -> tuple[float, float]:
    """The interval of a difference of two shares without what lies outside [-1, 1]; NaN stays."""
    ends = np.clip([low, high], -1.0, 1.0)
    return float(ends[0]), float(ends[1])


def is_zero(error: float) -> bool:
    """Whether a standard error of scores (which are about 1) is 0 but for rounding; NaN is not."""
    return error <= ROUNDING


def _effective_size(mean: float, error: float, n: int, groups: int) -> float:
    spread = mean * (1 - mean)
    if math.isnan(error) or spread == 0:
        return float(groups)
    size = spread / error**2
    if n == groups:
        return size
    apart, clustered = (student_quantile(0.975, count - 1.0) for count in (n, groups))
    return size * (apart / clustered) ** 2


def _wilson(mean: float, size: float) -> tuple[float, float]:
    shrink = 1 + Z95**2 / size
    centre = (mean + Z95**2 / (2 * size)) / shrink
    half = Z95 / shrink * math.sqrt(max(0.0, mean * (1 - mean) / size + (Z95 / (2 * size)) ** 2))
    # Rounding must not put a mean of exactly 0 or 1 outside its own interval.
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


@cache  # few degrees of freedom are asked for, each of them often
def student_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Quantile of Student's t distribution; the normal's for infinitely many degrees of freedom.

    With ``t = sqrt(df) tan(angle)`` the density becomes ``cos(angle) ** (df - 1)`` up to a factor,
    which Gauss-Legendre integrates to rounding error; the quantile is found by bisection. Raises
    ``ValueError`` unless ``0 < probability < 1`` and ``degrees_of_freedom >= 1``.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability: expected one between 0 and 1, got {probability}")
    if not degrees_of_freedom >= 1:
        raise ValueError(f"degrees_of_freedom: expected at least 1, got {degrees_of_freedom}")
    if probability < 0.5:
        return -student_quantile(1 - probability, degrees_of_freedom)
    normal = NormalDist().inv_cdf(probability)
    if math.isinf(degrees_of_freedom):
        return normal
    # The tails of t are the heavier: its quantile is at least the normal's.
    high = max(normal, 1.0)
    while _student_cdf(high, degrees_of_freedom) < probability:
        high *= 2
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if _student_cdf(middle, degrees_of_freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def student_p_value(t: float, degrees_of_freedom: float) -> float:
    """Two-sided: the probability of a value of Student's t as far from 0 as ``t``, or farther.

    Raises ``ValueError`` unless ``degrees_of_freedom >= 1``.
    """
    if not degrees_of_freedom >= 1:
        raise ValueError(f"degrees_of_freedom: expected at least 1, got {degrees_of_freedom}")
    if math.isinf(degrees_of_freedom):
        return 2 * NormalDist().cdf(-abs(t))
    # Rounding may put a tail below what can be told from 1.
    return max(0.0, 2 * (1 - _student_cdf(abs(t), degrees_of_freedom)))


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def _student_cdf(t: float, df: float) -> float:
    """Probability below ``t >= 0``."""
    factor = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    half = math.atan(t / math.sqrt(df)) / 2
    return 0.5 + factor * half * float(_WEIGHTS @ np.cos(half * (1 + _NODES)) ** (df - 1))
