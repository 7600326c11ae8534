"""Intervals by resampling images: the cluster bootstrap, of means and of any corpus metric.

Queries on one image are not independent, so whole clusters are drawn, never single queries
(``scipy.stats.bootstrap`` knows no clusters). The same seed and order of queries give the same
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

from flamingo.evaluation.clusters import (
    ROUNDING,
    Clusters,
    blocks,
    paired_differences,
    score_array,
)
from flamingo.evaluation.statistics import Z95

Metric = Callable[[Int[np.ndarray, " query"]], float]
"""A corpus metric of the queries with these indices, in which a query can stand several times."""


class Interval(Enum):
    """How a 95 % interval is read off the bootstrap distribution."""

    percentile = "percentile"
    """Its quantiles at 2.5 % and 97.5 %."""
    bca = "bca"
    """Quantiles moved for bias and skewness (Efron 1987), from the metric without each cluster."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A statistic with its standard error and 95 % interval; NaN for a single cluster.

    ``undefined`` of the ``draws`` gave NaN (ROC-AUC without one of its classes) and are left out.
    """

    value: float
    standard_error: float
    low: float
    high: float
    n: int
    clusters: int
    draws: int
    undefined: int


@dataclass(frozen=True, slots=True)
class PairedBootstrap:
    """First minus second with its interval, and the two-sided p-value of no difference."""

    difference: Bootstrap
    p_value: float


def bootstrap_mean(
    scores: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    draws: int = 10_000,
    interval: Interval = Interval.bca,
) -> Bootstrap:
    """Mean of ``scores`` (one a query) over resamples of as many clusters, with replacement.

    Field & Welsh 2007, "Bootstrapping clustered data" (the cluster bootstrap). Where all scores are
    equal the interval has no width: :func:`flamingo.evaluation.statistics.estimate` keeps one.
    Raises ``ValueError`` without scores, for a score that is no number, or for unequal lengths.
    """
    grouped = Clusters.of(clusters)
    values = score_array("scores", scores, grouped)
    means = _bootstrap_means(values, grouped, seed, draws)
    return _summary(values.mean(), means, grouped, interval, _means_without(values, grouped))


def bootstrap_metric(
    metric: Metric,
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    draws: int = 1_000,
    interval: Interval = Interval.percentile,
) -> Bootstrap:
    """Any corpus metric (CIDEr, ROC-AUC, F1) over resamples of as many clusters.

    ``clusters`` names the cluster of each query. ``metric`` is called ``1 + draws`` times, for BCa
    once more for each cluster; it returns NaN where it is undefined. What it takes from the corpus
    (the IDF of CIDEr) it takes from each resample. Raises ``ValueError`` without queries, or if the
    metric of all queries is NaN.
    """
    grouped = Clusters.of(clusters)
    value, values = _metric_draws(metric, grouped, seed, draws)
    return _summary(value, values, grouped, interval, _metrics_without(metric, grouped))


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    draws: int = 10_000,
    interval: Interval = Interval.bca,
) -> PairedBootstrap:
    """Mean of ``first - second`` over the same queries, with its interval and p-value.

    The p-value is the share of resamples whose difference lies as far from the observed one as that
    from zero, or farther (Efron & Tibshirani 1993, section 16.4: the distribution moved to the null
    hypothesis), the observation counted as one of them. Raises ``ValueError`` as
    :func:`bootstrap_mean` does. To test, prefer :mod:`flamingo.evaluation.permutation`: it keeps
    its level with few images, and this rejects too often.
    """
    grouped = Clusters.of(clusters)
    values = paired_differences(first, second, grouped)
    means = _bootstrap_means(values, grouped, seed, draws)
    summary = _summary(values.mean(), means, grouped, interval, _means_without(values, grouped))
    return PairedBootstrap(summary, _shifted_p_value(summary, means))


def paired_bootstrap_metric(
    first: Metric,
    second: Metric,
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    draws: int = 1_000,
    interval: Interval = Interval.percentile,
) -> PairedBootstrap:
    """:func:`paired_bootstrap` of a corpus metric: both runs are measured on the same resamples."""
    grouped = Clusters.of(clusters)

    def difference(queries: Int[np.ndarray, " query"]) -> float:
        return first(queries) - second(queries)

    value, values = _metric_draws(difference, grouped, seed, draws)
    without = _metrics_without(difference, grouped)
    summary = _summary(value, values, grouped, interval, without)
    return PairedBootstrap(summary, _shifted_p_value(summary, values))


# -------------------------------------------------------------------------------------- internals


def _bootstrap_means(
    values: Float[np.ndarray, " query"], clusters: Clusters, seed: int, draws: int
) -> Float[np.ndarray, " draw"]:
    generator = np.random.default_rng(seed)
    sums = clusters.sums(values)
    means = []
    for rows in blocks(draws, len(clusters)):
        drawn = generator.integers(len(clusters), size=(rows, len(clusters)))
        means.append(sums[drawn].sum(axis=1) / clusters.sizes[drawn].sum(axis=1))
    return np.concatenate(means)


def _metric_draws(
    metric: Metric, clusters: Clusters, seed: int, draws: int
) -> tuple[float, Float[np.ndarray, " draw"]]:
    value = metric(np.arange(clusters.queries))
    if math.isnan(value):
        raise ValueError("metric: expected a number for all queries together, got NaN")
    generator = np.random.default_rng(seed)
    values = [
        metric(clusters.members(drawn))
        for rows in blocks(draws, len(clusters))
        for drawn in generator.integers(len(clusters), size=(rows, len(clusters)))
    ]
    return value, np.array(values)


def _means_without(
    values: Float[np.ndarray, " query"], clusters: Clusters
) -> Callable[[], Float[np.ndarray, " cluster"]]:
    """The mean without each cluster."""
    sums = clusters.sums(values)
    return lambda: (sums.sum() - sums) / (clusters.queries - clusters.sizes)


def _metrics_without(
    metric: Metric, clusters: Clusters
) -> Callable[[], Float[np.ndarray, " cluster"]]:
    """The metric without each cluster."""
    every = range(len(clusters))
    return lambda: np.array([metric(np.flatnonzero(clusters.code != one)) for one in every])


def _summary(
    value: float,
    values: Float[np.ndarray, " draw"],
    clusters: Clusters,
    interval: Interval,
    without: Callable[[], Float[np.ndarray, " cluster"]],
) -> Bootstrap:
    defined = values[~np.isnan(values)]
    error = low = high = math.nan
    if len(clusters) > 1 and len(defined) > 1:
        error = float(defined.std(ddof=1))
        levels = (0.025, 0.975)
        if interval is Interval.bca and error > 0:
            levels = _bca_levels(value, defined, without())
        low, high = np.quantile(defined, levels).tolist()
    return Bootstrap(
        value=float(value),
        standard_error=error,
        low=low,
        high=high,
        n=clusters.queries,
        clusters=len(clusters),
        draws=len(values),
        undefined=len(values) - len(defined),
    )


def _bca_levels(
    value: float, values: Float[np.ndarray, " draw"], without: Float[np.ndarray, " cluster"]
) -> tuple[float, float]:
    """Efron 1987, equations 6.6 and 7.3 (jackknife acceleration); ties count half."""
    if np.isnan(without).any():
        raise ValueError(
            "interval: expected percentile, got bca, which needs the metric without each cluster, "
            f"and it is undefined without cluster {int(np.isnan(without).argmax())}"
        )
    normal = NormalDist()
    tie = ROUNDING * np.abs(values).max()
    below = (values < value - tie).mean() + (np.abs(values - value) <= tie).mean() / 2
    rarest = 1 / (len(values) + 1)
    bias = normal.inv_cdf(min(max(float(below), rarest), 1 - rarest))
    change = without.mean() - without
    # Below 1/6, whatever the data; only a constant jackknife has none.
    spread = (change**2).sum() ** 1.5
    acceleration = float((change**3).sum() / (6 * spread)) if spread > 0 else 0.0
    moved = [bias + z for z in (-Z95, Z95)]
    low, high = (normal.cdf(bias + z / (1 - acceleration * z)) for z in moved)
    return low, high


def _shifted_p_value(summary: Bootstrap, values: Float[np.ndarray, " draw"]) -> float:
    if math.isnan(summary.standard_error):
        return math.nan
    defined = values[~np.isnan(values)]
    tolerance = ROUNDING * np.abs(defined).max()
    far = np.abs(defined - summary.value) >= abs(summary.value) - tolerance
    return (1 + int(far.sum())) / (1 + len(defined))
