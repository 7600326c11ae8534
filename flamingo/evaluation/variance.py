"""Where the spread of a few-shot result comes from: demonstrations, test images, or both at once.

The same queries are answered under several demonstration seeds, which gives a matrix of scores
(seed, query). Seeds ``s`` and images ``c`` are both samples, of all demonstrations one could have
drawn and of all images one could have asked about: a two-way random-effects model,

    y[s, q] = mean + seed[s] + image and query[q] + (seed x query)[s, q]

Demonstrations drawn for each query apart (random, RICES) show in the last term; the seed's own term
is for what all queries of a seed share (a fixed set of demonstrations). The spread over seeds on
fixed queries holds both. It says nothing about new images, and the clustered standard error of one
seed nothing about new demonstrations.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flamingo.evaluation.clusters import Clusters, score_array
from flamingo.evaluation.statistics import half_width


@dataclass(frozen=True, slots=True)
class Decomposition:
    """The grand mean over seeds and queries, and what it would be with others.

    Three variances in squared scores, for the mean over this number of queries:

    ``seed``: between seeds, on infinitely many images. ``sampling``: between samples of images,
    averaged over infinitely many seeds. ``interaction``: the rest of one seed's mean. They are
    unbiased estimates and therefore can be negative, which means: nothing seen.

    Three standard errors of the grand mean, if the experiment were repeated with

    ``error_new_seeds``: other seeds, the same queries; ``error_new_images``: other images, the same
    seeds; ``standard_error``: other seeds and other images. ``low`` and ``high`` are the 95 %
    interval for the latter, by Student's t with ``degrees_of_freedom``. What needs a second seed or
    a second image and has none is NaN.
    """

    mean: float
    seed: float
    sampling: float
    interaction: float
    error_new_seeds: float
    error_new_images: float
    standard_error: float
    degrees_of_freedom: float
    low: float
    high: float
    seeds: int
    n: int
    clusters: int


def decompose(scores: Sequence[Sequence[float]], clusters: Sequence[Hashable]) -> Decomposition:
    """Seed variance, sampling variance and their interaction of ``scores`` (seed, query).

    For two models give the differences of their scores under the same seeds on the same queries.
    With ``S`` seeds, ``N`` queries in ``G`` images, row means ``y[s]``, column means ``y[q]``:

        A  = sum_s (y[s] - mean)^2 / (S - 1)                                     seed + interaction
        B  = G / (G - 1) * sum_c (sum_{q in c} y[q] - mean)^2 / N^2      sampling + interaction / S
        AB = G / (G - 1) / (S - 1) * sum_s,c (sum_{q in c} y[s, q] - y[s] - y[q] + mean)^2 / N^2
                                                                                        interaction

    with the expectations to the right, so that ``seed = A - AB`` and ``sampling = B - AB / S``.
    With one query an image these are the mean squares of the two-way analysis of variance without
    replication, ``A = MS_seed / N``, ``B = MS_query / (S N)``, ``AB = MS_residual / N``, and the
    components are its moment estimates (Searle, Casella & McCulloch 1992, "Variance Components",
    chapter 4). Images enter as in the cluster-robust variance (Miller 2024), and the three terms
    combine as in two-way clustering (Cameron, Gelbach & Miller 2011).

    The grand mean's variance over new seeds and new images is ``A / S + max(sampling, 0)``, at
    least ``B``; degrees of freedom by Satterthwaite from ``A / S`` (``S - 1``) and ``B`` (``G -
    1``), at least the smaller of the two. So multireader studies in radiology treat readers and
    cases (Hillis 2007, who lets the readers' alone count). Raises ``ValueError`` without scores,
    for a row of another length, or for a score that is no number.
    """
    grouped = Clusters.of(clusters)
    if not scores:
        raise ValueError("scores: expected at least one seed, got none")
    y = np.stack([score_array(f"scores[{s}]", row, grouped) for s, row in enumerate(scores)])
    count = len(y)
    mean, by_seed, by_query = y.mean(), y.mean(axis=1), y.mean(axis=0)
    sampling_and = _clustered_variance((by_query - mean)[None], grouped)
    seed_and = interaction = math.nan
    if count > 1:
        seed_and = float(by_seed.var(ddof=1))
        rest = y - by_seed[:, None] - by_query + mean
        interaction = _clustered_variance(rest, grouped) / (count - 1)
    seed, sampling = seed_and - interaction, sampling_and - interaction / count
    variance, freedom = _total(
        seed_and / count, count - 1, sampling_and, sampling, len(grouped) - 1
    )
    error = math.sqrt(variance)
    half = half_width(error, freedom)
    return Decomposition(
        mean=float(mean),
        seed=seed,
        sampling=sampling,
        interaction=interaction,
        error_new_seeds=math.sqrt(seed_and / count),
        error_new_images=math.sqrt(sampling_and),
        standard_error=error,
        degrees_of_freedom=freedom,
        low=float(mean) - half,
        high=float(mean) + half,
        seeds=count,
        n=grouped.queries,
        clusters=len(grouped),
    )


def _clustered_variance(residuals: Float[np.ndarray, "row query"], clusters: Clusters) -> float:
    """Variance of a row's mean, from its residuals by cluster, summed over rows."""
    groups = len(clusters)
    if groups < 2:
        return math.nan
    squares = sum(float((clusters.sums(row) ** 2).sum()) for row in residuals)
    return groups / (groups - 1) * squares / clusters.queries**2


def _total(
    seeds: float, seed_freedom: int, images: float, sampling: float, image_freedom: int
) -> tuple[float, float]:
    """Variance of the grand mean over new seeds and images, and its degrees of freedom."""
    if math.isnan(sampling):
        return math.nan, math.nan
    variance = max(seeds + max(sampling, 0.0), images)
    if variance == 0:
        return 0.0, math.nan
    freedom = variance**2 / (seeds**2 / seed_freedom + images**2 / image_freedom)
    return variance, max(freedom, float(min(seed_freedom, image_freedom)))
