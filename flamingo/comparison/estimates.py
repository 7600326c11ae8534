"""One number with its interval for each sample, and for each group of its queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flamingo.comparison.cells import number
from flamingo.comparison.samples import Sample
from flamingo.evaluation.points import Scored, by_group, summary


@dataclass(frozen=True, slots=True)
class Measured:
    """The metric of a sample's queries of ``group`` with its 95 % interval, clustered by image.

    Over several draws of demonstrations the interval is that of new demonstrations and new images
    together, as in ``results.json``.
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


def measured(sample: Sample) -> list[Measured]:
    """Of all queries, then of each group."""
    groups = by_group([prediction.group for prediction in sample.draws[0]])
    return [_measured(sample, name, places) for name, places in groups]


def _measured(sample: Sample, group: str, places: Sequence[int]) -> Measured:
    own = list(places)
    scores, positive = sample.scores[:, own].tolist(), sample.positive[:, own].tolist()
    draws = [Scored(*both) for both in zip(scores, positive, strict=True)]
    clusters, labels = [sample.clusters[i] for i in own], sample.labels[own].tolist()
    found = summary(sample.facts.metric, draws, clusters, labels)
    return Measured(
        sample=sample,
        group=group,
        n=found["n"],
        clusters=found["clusters"],
        draws=len(draws),
        **{name: number(found[name]) for name in ("mean", "standard_error", "low", "high")},
    )
