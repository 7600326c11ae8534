"""Each arm against the reference on the queries both have: difference, interval, tests, power.

Of two p-values the permutation test's is the one to report (it keeps its level with few images),
and the one that is corrected for the number of tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from flamingo.comparison.samples import Sample, common, mean_roc_auc
from flamingo.evaluation.corrections import Correction, correct
from flamingo.evaluation.permutation import (
    Permutation,
    paired_permutation,
    paired_permutation_metric,
)
from flamingo.evaluation.power import minimum_detectable_effect, sensitivity
from flamingo.evaluation.resampling import (
    PairedBootstrap,
    paired_bootstrap,
    paired_bootstrap_metric,
)


@dataclass(frozen=True, slots=True)
class Difference:
    """``arm`` minus ``reference`` (samples of the common queries), as fractions.

    ``low``, ``high`` and ``detectable`` (the minimum detectable effect at 80 % power and level 5 %,
    uncorrected) are NaN where no query's score differs, or there is a single image.
    ``corrected`` is the permutation test's p-value over all tests of the table.
    """

    arm: Sample
    reference: Sample
    value: float
    low: float
    high: float
    bootstrap_p: float
    permutation_p: float
    corrected: float
    detectable: float
    n: int
    clusters: int


@dataclass(frozen=True, slots=True)
class Draws:
    """Random draws of the tests: of means, and of metrics that are none (slower by far)."""

    means: int = 10_000
    metrics: int = 1_000


def paired(reference: Sequence[Sample], arm: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Reference and arm at each benchmark and shot count that both have, on common queries.

    Raises ``ValueError`` as :func:`flamingo.comparison.samples.common` does.
    """
    own = {(sample.facts.name, sample.shots): sample for sample in arm}
    keys = [(sample, own.get((sample.facts.name, sample.shots))) for sample in reference]
    return [common(first, second) for first, second in keys if second is not None]


def differences(
    pairs: Sequence[tuple[Sample, Sample]],
    correction: Correction,
    *,
    draws: Draws = Draws(),
    seed: int = 0,
) -> list[Difference]:
    """A row for each pair (reference, arm); where a metric is undefined for all queries, none.

    Scores are averaged over draws of demonstrations first, so that these are held as drawn; images
    are what is resampled. p-values are corrected over all rows together.
    """
    rows = [
        _of_means(reference, arm, draws.means, seed)
        if arm.is_mean
        else _of_metrics(reference, arm, draws.metrics, seed)
        for reference, arm in pairs
        if arm.is_mean or len(set(arm.labels.tolist())) == 2
    ]
    corrected = correct([row.permutation_p for row in rows], correction)
    return [replace(row, corrected=p) for row, p in zip(rows, corrected, strict=True)]


def _of_means(reference: Sample, arm: Sample, draws: int, seed: int) -> Difference:
    first, second, clusters = arm.means.tolist(), reference.means.tolist(), arm.clusters
    interval = paired_bootstrap(first, second, clusters, seed=seed, draws=draws)
    test = paired_permutation(first, second, clusters, seed=seed, draws=draws)
    return _row(reference, arm, interval, test, sensitivity(first, second, clusters).paired)


def _of_metrics(reference: Sample, arm: Sample, draws: int, seed: int) -> Difference:
    def swapped(mask: Bool[np.ndarray, " query"]) -> float:
        return _exchanged(arm, reference, mask) - _exchanged(reference, arm, mask)

    interval = paired_bootstrap_metric(
        arm.corpus_metric, reference.corpus_metric, arm.clusters, seed=seed, draws=draws
    )
    test = paired_permutation_metric(swapped, arm.clusters, seed=seed, draws=draws)
    error = interval.difference.standard_error
    return _row(reference, arm, interval, test, minimum_detectable_effect(error) if error else 0.0)


def _row(
    reference: Sample, arm: Sample, interval: PairedBootstrap, test: Permutation, detectable: float
) -> Difference:
    found = interval.difference
    known = detectable > 0  # else all differences are equal: nothing tells how far another could be
    return Difference(
        arm=arm,
        reference=reference,
        value=found.value,
        low=found.low if known else math.nan,
        high=found.high if known else math.nan,
        bootstrap_p=interval.p_value,
        permutation_p=test.p_value,
        corrected=math.nan,
        detectable=detectable if known else math.nan,
        n=test.n,
        clusters=test.clusters,
    )


def _exchanged(own: Sample, other: Sample, mask: Bool[np.ndarray, " query"]) -> float:
    """The metric of ``own`` with the predictions of ``other`` where the mask holds.

    Arms of several draws and of one: the r-th draw is exchanged with the r-th, in turn.
    """
    second = other.positive[np.arange(len(own.positive)) % len(other.positive)]
    return mean_roc_auc(np.where(mask, second, own.positive), own.labels)
