"""One number with its interval for each sample, and for each group of its queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from flamingo.comparison.samples import Sample
from flamingo.evaluation.points import Scored, summary
from flamingo.evaluation.resampling import bootstrap_metric
from flamingo.evaluation.statistics import Estimate
from flamingo.naming import ALL


@dataclass(frozen=True, slots=True)
class Measured:
    """The metric of a sample's queries of ``group`` with its 95 % interval, clustered by image.

    Over several draws of demonstrations the interval is that of new demonstrations and new images
    together (ROC-AUC: of new images alone), as in ``results.json``.
    """

    sample: Sample
    group: str
    mean: float
    standard_error: float
    low: float
    high: float
    n: int
    clusters: int
    draws: int


def measured(sample: Sample, *, draws: int = 1_000) -> list[Measured]:
    """Of all queries, then of each group; ``draws`` are those of the bootstrap, for ROC-AUC."""
    groups = [prediction.group for prediction in sample.draws[0]]
    places = {ALL: list(range(len(groups)))} | {
        name: [i for i, group in enumerate(groups) if group == name]
        for name in sorted(set(groups) - {""})
    }
    return [_measured(sample, name, own, draws) for name, own in places.items()]


def _measured(sample: Sample, group: str, places: Sequence[int], draws: int) -> Measured:
    own = list(places)
    clusters = [sample.clusters[i] for i in own]
    scores = sample.scores[:, own]
    if sample.is_mean:
        found = summary(
            sample.facts.metric, [Scored(row, []) for row in scores.tolist()], clusters, []
        )
    else:
        found = asdict(_corpus(sample, own, clusters, draws))
    return Measured(
        sample=sample,
        group=group,
        n=found["n"],
        clusters=found["clusters"],
        draws=len(scores),
        **{name: _number(found[name]) for name in ("mean", "standard_error", "low", "high")},
    )


def _number(value: float | None) -> float:
    """NaN for the None that JSON has instead."""
    return math.nan if value is None else value


def _corpus(sample: Sample, places: Sequence[int], clusters: Sequence[str], draws: int) -> Estimate:
    if len(set(sample.labels[list(places)].tolist())) < 2:
        nan = math.nan
        return Estimate(nan, nan, nan, nan, len(places), len(set(clusters)))
    part = sample.only([sample.queries[i] for i in places])
    found = bootstrap_metric(part.corpus_metric, clusters, draws=draws)
    return Estimate(
        found.value, found.standard_error, found.low, found.high, found.n, found.clusters
    )
