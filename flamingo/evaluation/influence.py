"""Standard errors of statistics that are no means: ratios of sums, the area under the ROC curve.

To first order such a statistic of the queries deviates from its expectation by ``sum_i u_i``, with
the influence ``u_i`` of query ``i`` (of a mean: ``(s_i - mean) / n``). With ``G`` clusters ``c``

    SE^2 = G / (G - 1) * sum_c (sum_{i in c} u_i)^2

which for a mean is :func:`flamingo.evaluation.statistics.clustered_standard_error`. Much quicker
than a bootstrap, and :attr:`Influence.scores` go where those of a mean do: runs on the same
queries are subtracted, and several draws decomposed (:mod:`flamingo.evaluation.variance`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flamingo.evaluation.clusters import Clusters
from flamingo.evaluation.statistics import Estimate, bounded_estimate


@dataclass(frozen=True, slots=True)
class Influence:
    """A statistic and what each query contributes to its deviation. NaN: undefined."""

    value: float
    parts: Float[np.ndarray, " query"]

    @property
    def scores(self) -> Float[np.ndarray, " query"]:
        """One a query: their mean is the statistic, and deviates as it does (to first order)."""
        return self.value + len(self.parts) * self.parts

    def standard_error(self, clusters: Sequence[Hashable]) -> float:
        """Clustered; NaN for a single cluster or an undefined statistic."""
        grouped = Clusters.of(clusters)
        groups = len(grouped)
        if groups < 2 or math.isnan(self.value):
            return math.nan
        squares = float((grouped.sums(self.parts) ** 2).sum())
        return math.sqrt(groups / (groups - 1) * squares)

    def estimate(self, clusters: Sequence[Hashable]) -> Estimate:
        """Of a statistic in [0, 1]: Wilson's interval at the effective sample size."""
        error = self.standard_error(clusters)
        return bounded_estimate(self.value, error, len(clusters), len(set(clusters)))


def ratio(
    numerators: Float[np.ndarray, " query"], denominators: Float[np.ndarray, " query"]
) -> Influence:
    """Sum over sum: precision, recall, F1. 0 where the denominators sum to 0, as in
    :mod:`flamingo.evaluation.metrics.classification`."""
    total = denominators.sum()
    if total == 0:
        return Influence(0.0, np.zeros(len(denominators)))
    value = float(numerators.sum() / total)
    return Influence(value, (numerators - value * denominators) / total)


def roc_auc(scores: Float[np.ndarray, " query"], positive: Sequence[bool]) -> Influence:
    """The probability that a positive scores above a negative, ties counting half.

    Influences are the placement values of DeLong, DeLong & Clarke-Pearson 1988, clustered as by
    Obuchowski 1997. NaN unless there are both kinds.
    """
    chosen = np.array(positive, dtype=bool)
    own, others = scores[chosen], scores[~chosen]
    if not len(own) or not len(others):
        return Influence(math.nan, np.full(len(scores), math.nan))
    above = _share_below(own, others)
    value = float(above.mean())
    parts = np.empty(len(scores))
    parts[chosen] = (above - value) / len(own)
    parts[~chosen] = (1 - _share_below(others, own) - value) / len(others)
    return Influence(value, parts)


def _share_below(
    values: Float[np.ndarray, " one"], others: Float[np.ndarray, " other"]
) -> Float[np.ndarray, " one"]:
    """The share of ``others`` below each value, ties counting half."""
    ordered = np.sort(others)
    places = [np.searchsorted(ordered, values, side) for side in ("left", "right")]
    return (places[0] + places[1]) / (2 * len(others))
