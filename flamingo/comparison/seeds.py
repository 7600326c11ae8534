"""Arms of several training seeds: means and paired differences over seeds and queries at once.

The runs of an arm answer the same queries: a matrix (seed, query). Both are samples, of all seeds
one could have trained with and of all images one could have asked about, so that an interval over
either alone is too narrow. The model is the two-way one of
:func:`flamingo.evaluation.variance.decompose`, with training seeds in the place of seeds of
demonstrations: the variance of new seeds and new images together, Student's t with Satterthwaite's
degrees of freedom. A difference is paired by both: runs of one seed see the same data in the same
order, where the arm does not change the data.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from numpy import ndarray

from flamingo.evaluation.statistics import (
    Z95,
    estimate,
    mean_estimate,
    student_p_value,
    student_quantile,
)
from flamingo.evaluation.variance import decompose


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """A mean of a matrix (seed, query) with its 95 % interval and the p-value of zero.

    Of one seed the interval is that of new images alone (a difference's with Student's t on one
    degree of freedom less than images): nothing is known of other seeds. NaN: what
    cannot be told (a single image, or an error of zero beside a difference that is not).
    """

    mean: float
    standard_error: float
    low: float
    high: float
    p_value: float
    by_seed: tuple[float, ...]
    n: int
    images: int


def difference_over_seeds(
    arm: Float[ndarray, "seed query"],
    reference: Float[ndarray, "seed query"],
    clusters: Sequence[Hashable],
) -> OverSeeds:
    """``arm - reference``, row by row of the same seed and column by column of the same query.

    Raises ``ValueError`` as ``decompose`` does.
    """
    assert arm.shape == reference.shape
    differences = arm - reference
    by_seed = tuple(differences.mean(axis=1).tolist())
    if len(by_seed) == 1:
        one = mean_estimate(differences[0].tolist(), clusters)
        mean, error, freedom = one.mean, one.standard_error, float(len(set(clusters)) - 1)
        half = error * student_quantile(0.975, freedom) if error > 0 else error
        low, high = mean - half, mean + half
    else:
        both = decompose(differences.tolist(), clusters)
        low, high, freedom = both.low, both.high, both.degrees_of_freedom
        mean, error = both.mean, both.standard_error
    p_value = math.nan
    if error == 0:  # all differences are equal: nothing tells how far another could be
        low = high = math.nan
    if error > 0:
        p_value = student_p_value(mean / error, freedom)
    elif error == 0 and mean == 0:
        p_value = 1.0
    return OverSeeds(mean, error, low, high, p_value, by_seed, len(clusters), len(set(clusters)))


def mean_over_seeds(
    scores: Float[ndarray, "seed query"], clusters: Sequence[Hashable], *, share: bool
) -> OverSeeds:
    """The mean of scores; a ``share``'s interval stays within [0, 1], and keeps a width there.

    Where all answers of all seeds are right, or wrong, it is Wilson's at as many answers as images.
    Raises ``ValueError`` as ``decompose`` does.
    """
    by_seed = tuple(scores.mean(axis=1).tolist())
    total = decompose(scores.tolist(), clusters)
    mean, error, low, high = total.mean, total.standard_error, total.low, total.high
    bounded = share and (len(by_seed) == 1 or (error == 0 and mean in (0, 1)))
    if bounded:
        one = estimate(scores.mean(axis=0).tolist(), clusters)
        error, low, high = one.standard_error, one.low, one.high
    elif len(by_seed) == 1:
        error = total.error_new_images
        low, high = mean - Z95 * error, mean + Z95 * error
    low = max(0.0, low) if not math.isnan(low) else low
    high = min(1.0, high) if share and not math.isnan(high) else high
    return OverSeeds(mean, error, low, high, math.nan, by_seed, total.n, total.clusters)
