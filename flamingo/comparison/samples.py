"""An arm's predictions of one benchmark at one shot count, read from disk, with their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from flamingo.choices import Metric
from flamingo.comparison.arms import Arm, Facts
from flamingo.evaluation.metrics.classification import roc_auc
from flamingo.evaluation.metrics.scores import POSITIVE, item_scores
from flamingo.evaluation.points import positive
from flamingo.evaluation.predictions import Prediction, PredictionFile
from flamingo.runs import of_keys


@dataclass(frozen=True)
class Sample:
    """Predictions (draw of demonstrations, query), the queries in the order of their ids.

    A query whose draws coincide has one prediction for several; it is repeated then.
    """

    arm: Arm
    facts: Facts
    shots: int
    draws: Sequence[Sequence[Prediction]]

    @cached_property
    def queries(self) -> list[str]:
        return [prediction.query for prediction in self.draws[0]]

    @cached_property
    def clusters(self) -> list[str]:
        return [prediction.cluster for prediction in self.draws[0]]

    @cached_property
    def scores(self) -> Float[np.ndarray, "draw query"]:
        """By the benchmark's metric; CIDEr's idf is that of this sample's references."""
        return np.array(
            [
                item_scores(
                    self.facts.metric, [p.answer for p in draw], [p.references for p in draw]
                )
                for draw in self.draws
            ]
        )

    @cached_property
    def means(self) -> Float[np.ndarray, " query"]:
        """The score of each query, averaged over draws."""
        return self.scores.mean(axis=0)

    @cached_property
    def positive(self) -> Float[np.ndarray, "draw query"]:
        """The probability of :data:`POSITIVE`, which ROC-AUC orders by."""
        return np.array([[positive(p) for p in draw] for draw in self.draws])

    @cached_property
    def labels(self) -> Int[np.ndarray, " query"]:
        """1 where :data:`POSITIVE` is right."""
        return np.array([int(p.target == POSITIVE) for p in self.draws[0]])

    @property
    def is_mean(self) -> bool:
        """Whether the metric is a mean over queries."""
        return self.facts.metric is not Metric.roc_auc

    def corpus_metric(self, queries: Int[np.ndarray, " query"]) -> float:
        """ROC-AUC of these queries, averaged over draws; NaN without both kinds of labels."""
        return mean_roc_auc(self.positive[:, queries], self.labels[queries])

    def only(self, queries: Sequence[str]) -> Sample:
        """The sample of these queries, in their order."""
        place = {query: i for i, query in enumerate(self.queries)}
        places = [place[query] for query in queries]
        return Sample(
            self.arm, self.facts, self.shots, [[draw[i] for i in places] for draw in self.draws]
        )


def mean_roc_auc(
    positives: Float[np.ndarray, "draw query"], labels: Int[np.ndarray, " query"]
) -> float:
    """ROC-AUC averaged over draws, NaN without both kinds of labels."""
    own = labels.tolist()
    if len(set(own)) < 2:
        return math.nan
    return sum(roc_auc(draw.tolist(), own) for draw in positives) / len(positives)


def read_samples(arm: Arm, facts: Facts) -> list[Sample]:
    """The predictions behind the numbers of ``results.json`` on a benchmark, by rising shots.

    The draws of each are in the order of their seeds. Raises ``ValueError`` naming the file if it
    is not known which predictions these are, or if one is missing.
    """
    counted = sorted(shots for name, shots in arm.cells if name == facts.name)
    if not counted:
        return []
    directory = arm.run.directory
    path = directory.predictions_of(facts.name, arm.condition.value)
    by_key = PredictionFile(path).by_key
    draws: dict[int, dict[int, list[Prediction]]] = {shots: {} for shots in counted}
    for cell in arm.counted:
        if cell["benchmark"] == facts.name and cell["shots"] in draws:
            found = of_keys(by_key, cell["keys"], path)
            draws[cell["shots"]][cell["seed"]] = sorted(found, key=lambda p: p.query)
    for shots, by_seed in draws.items():
        if not by_seed:
            raise ValueError(
                f"{directory.cells}: expected a cell of {facts.name}, {arm.condition.value} at "
                f"{shots} shots, which results.json has, found none"
            )
    return [
        Sample(arm, facts, shots, [by_seed[seed] for seed in sorted(by_seed)])
        for shots, by_seed in draws.items()
    ]


def common(first: Sample, second: Sample) -> tuple[Sample, Sample]:
    """Both on the queries that both have.

    Raises ``ValueError`` if there is none, or if one id names different queries.
    """
    place = f"{first.facts.name}, {first.shots} shots: {first.arm.label!r}, {second.arm.label!r}"
    seeds = [sample.arm.benchmarks[first.facts.name].seed for sample in (first, second)]
    told = f" (drawn by the seeds {seeds[0]} and {seeds[1]})" if seeds[0] != seeds[1] else ""
    known = set(second.queries)
    shared = [query for query in first.queries if query in known]
    if not shared:
        raise ValueError(f"{place}: expected queries that both have, got none{told}")
    one, other = first.only(shared), second.only(shared)
    differ = [
        (a.query, a.cluster, b.cluster)
        for a, b in zip(one.draws[0], other.draws[0], strict=True)
        if (a.cluster, sorted(a.references)) != (b.cluster, sorted(b.references))
    ]
    if differ:
        query, image, other_image = differ[0]
        images = f" ({image}, {other_image})" if image != other_image else ""
        raise ValueError(
            f"{place}: expected the same queries, but {len(differ)} of {len(shared)} ids, such as "
            f"{query!r}{images}, name another image or other references{told}"
        )
    return one, other
