"""How small a difference an evaluation can show.

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
