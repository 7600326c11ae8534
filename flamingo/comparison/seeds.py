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

from flamingo.evaluation.permutation import paired_permutation
from flamingo.evaluation.statistics import (
    difference_range,
    estimate,
    half_width,
    is_zero,
    mean_estimate,
    student_p_value,
)
from flamingo.evaluation.variance import decompose


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """A mean of a matrix (seed, query) with its 95 % interval and the p-value of zero.

    Of one seed the interval is that of new images alone (a difference's with Student's t on one
    degree of freedom less than images): nothing is known of other seeds. NaN: what
    cannot be told (of a single image; the interval of a difference that does not vary).
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
    *,
    share: bool,
) -> OverSeeds:
    """``arm - reference``, row by row of the same seed and column by column of the same query.

    p is that of Student's t. A difference that does not vary (every answer of the arm right, every
    one of the reference wrong) has no error to be compared with, and p of the sign-flip test over
    images, as two runs are compared: 1 for a difference of 0. The interval of a ``share``'s
    difference stays within [-1, 1]. Raises ``ValueError`` as ``decompose`` does.
    """
    assert arm.shape == reference.shape
    differences = arm - reference
    by_seed = tuple(differences.mean(axis=1).tolist())
    if len(by_seed) == 1:
        one = mean_estimate(differences[0].tolist(), clusters)
        mean, error, freedom = one.mean, one.standard_error, float(len(set(clusters)) - 1)
        low, high = one.low, one.high
    else:
        both = decompose(differences.tolist(), clusters)
        low, high, freedom = both.low, both.high, both.degrees_of_freedom
        mean, error = both.mean, both.standard_error
    p_value = math.nan
    if is_zero(error):  # all differences are equal: nothing tells how far another could be
        low = high = math.nan
        p_value = 1.0 if is_zero(abs(mean)) else _sign_flips(differences, clusters)
    elif error > 0:
        p_value = student_p_value(mean / error, freedom)
    if share:
        low, high = difference_range(low, high)
    return OverSeeds(mean, error, low, high, p_value, by_seed, len(clusters), len(set(clusters)))


def _sign_flips(differences: Float[ndarray, "seed query"], clusters: Sequence[Hashable]) -> float:
    by_query = differences.mean(axis=0)
    return paired_permutation(by_query.tolist(), [0.0] * len(by_query), clusters).p_value


def mean_over_seeds(
    scores: Float[ndarray, "seed query"], clusters: Sequence[Hashable], *, share: bool
) -> OverSeeds:
    """The mean of scores; a ``share``'s interval stays within [0, 1], and keeps a width there.

    Where all answers of all seeds are right, or wrong, it is Wilson's at as many answers as images;
    where they are all worth the same otherwise there is none. Raises ``ValueError`` as
    ``decompose`` does.
    """
    by_seed = tuple(scores.mean(axis=1).tolist())
    total = decompose(scores.tolist(), clusters)
    mean, error, low, high = total.mean, total.standard_error, total.low, total.high
    bounded = share and (len(by_seed) == 1 or (is_zero(error) and mean in (0, 1)))
    if bounded:
        one = estimate(scores.mean(axis=0).tolist(), clusters)
        error, low, high = one.standard_error, one.low, one.high
    elif len(by_seed) == 1:
        error = total.error_new_images
        half = half_width(error, total.clusters - 1.0)
        low, high = mean - half, mean + half
    if not bounded and is_zero(error):  # nothing tells how far another could be
        low = high = math.nan
    low = max(0.0, low) if not math.isnan(low) else low
    high = min(1.0, high) if share and not math.isnan(high) else high
    return OverSeeds(mean, error, low, high, math.nan, by_seed, total.n, total.clusters)
