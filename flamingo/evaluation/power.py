"""How small a difference an evaluation can show, and how many queries a difference needs.

The minimum detectable effect is the true difference that a two-sided test at level ``alpha`` finds
with probability ``power`` (Bloom 1995; Miller 2024, "Adding Error Bars to Evals", section 5):

    effect = (t[1 - alpha / 2] + t[power]) * standard error of the difference

Two runs on the same queries are compared in pairs, and the difference's variance loses twice their
covariance; two runs on different samples of queries are not. Several queries an image count for
less than as many images, by the design effect (Kish 1965).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from flamingo.evaluation.clusters import Clusters, paired_differences, score_array
from flamingo.evaluation.statistics import clustered_standard_error, student_quantile


def minimum_detectable_effect(
    standard_error: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    degrees_of_freedom: float = math.inf,
) -> float:
    """The smallest difference found with probability ``power``, of this ``standard_error``.

    Raises ``ValueError`` for a negative standard error, ``alpha`` outside (0, 1) or ``power``
    outside (alpha, 1).
    """
    if not standard_error >= 0:
        raise ValueError(f"standard_error: expected at least 0, got {standard_error}")
    return _multiplier(alpha, power, degrees_of_freedom) * standard_error


def planned_standard_error(deviation: float, n: int, design_effect: float = 1.0) -> float:
    """Of a mean over ``n`` queries of this standard deviation: ``deviation sqrt(deff / n)``.

    ``deviation`` is at most ``sqrt(p (1 - p))`` for scores in [0, 1] of mean ``p``. Raises
    ``ValueError`` for ``n`` below 1.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1 query, got {n}")
    return deviation * math.sqrt(design_effect / n)


def difference_deviation(first: float, second: float, correlation: float = 0.0) -> float:
    """Standard deviation of the difference of two scores of one query, from those of the two.

    ``correlation`` is that of the two runs' scores over queries, 0 for unpaired samples of one
    size. Raises ``ValueError`` for one outside [-1, 1].
    """
    if not -1 <= correlation <= 1:
        raise ValueError(f"correlation: expected one between -1 and 1, got {correlation}")
    return math.sqrt(max(0.0, first**2 + second**2 - 2 * correlation * first * second))


def queries_needed(
    effect: float,
    deviation: float,
    design_effect: float = 1.0,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
) -> int:
    """The fewest queries (of each run) whose minimum detectable effect is ``effect`` or smaller.

    ``deviation`` is that of the difference on one query. Raises ``ValueError`` for an ``effect``
    that is not positive.
    """
    if not effect > 0:
        raise ValueError(f"effect: expected above 0, got {effect}")
    multiplier = _multiplier(alpha, power, math.inf)
    return max(1, math.ceil((multiplier * deviation / effect) ** 2 * design_effect))


def design_effect(scores: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Clustered variance of the mean over that of as many independent queries.

    About ``1 + (m - 1) r`` for ``m`` queries an image that correlate by ``r``. NaN for a single
    cluster or equal scores. Raises ``ValueError`` without scores, or for unequal lengths.
    """
    values = score_array("scores", scores, Clusters.of(clusters))
    if len(values) < 2 or values.var() == 0:
        return math.nan
    independent = float(values.var(ddof=1)) / len(values)
    return clustered_standard_error(values.tolist(), clusters) ** 2 / independent


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What two runs' scores say about comparisons like theirs on the same ``n`` queries.

    ``paired`` is the minimum detectable effect, ``correlation`` of the two runs' scores over
    queries what pairing gains by, ``design_effect`` that of their differences. NaN where the
    scores do not vary.
    """

    paired: float
    correlation: float
    design_effect: float
    n: int
    alpha: float
    power: float


def sensitivity(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    n: int | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
) -> Sensitivity:
    """The minimum detectable effect of runs like these over ``n`` queries (by default as many).

    Clustered standard errors, scaled by ``sqrt(len(first) / n)``: as many queries an image as here.
    Raises ``ValueError`` without scores, for unequal lengths, or as
    :func:`minimum_detectable_effect` does. A single cluster gives NaN.
    """
    grouped = Clusters.of(clusters)
    differences = paired_differences(first, second, grouped).tolist()
    asked = grouped.queries if n is None else n
    if asked < 1:
        raise ValueError(f"n: expected at least 1 query, got {asked}")
    multiplier = _multiplier(alpha, power, math.inf) * math.sqrt(grouped.queries / asked)
    vary = min(np.std(first), np.std(second)) > 0
    return Sensitivity(
        paired=multiplier * clustered_standard_error(differences, clusters),
        correlation=float(np.corrcoef(first, second)[0, 1]) if vary else math.nan,
        design_effect=design_effect(differences, clusters),
        n=asked,
        alpha=alpha,
        power=power,
    )


def _multiplier(alpha: float, power: float, degrees_of_freedom: float) -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected between 0 and 1, got {alpha}")
    if not alpha < power < 1:
        raise ValueError(f"power: expected between alpha ({alpha}) and 1, got {power}")
    return student_quantile(1 - alpha / 2, degrees_of_freedom) + student_quantile(
        power, degrees_of_freedom
    )
