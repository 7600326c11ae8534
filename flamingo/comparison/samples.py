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
from flamingo.evaluation.predictions import Prediction
from flamingo.evaluation.results import Row
from flamingo.training.tracking import read_metrics

TOLERANCE = 1e-6
"""By which a mean probability may differ from that of ``results.json``: the order of its terms."""


@dataclass(frozen=True)
class Sample:
    """Predictions (draw of demonstrations, query), the queries in the order of their ids.

    A query whose draws coincide has one prediction for several; it is repeated then. ``surplus`` is
    the number of queries beyond those that ``results.json`` counts: the arm was evaluated on more
    of them before.
    """

    arm: Arm
    facts: Facts
    shots: int
    draws: Sequence[Sequence[Prediction]]
    surplus: int = 0

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

    The file may also hold predictions of other weights and settings. Those of other weights are
    told by their ``model``. Where a query has more of the others than there are draws, the newest
    or the oldest are taken, whichever have the mean probability that ``results.json`` notes.
    Raises ``ValueError`` naming the file if neither does, or if predictions are missing.
    """
    rows = {shots: row for (name, shots), row in arm.cells.items() if name == facts.name}
    path = arm.run.directory.predictions / facts.name / f"{arm.condition.value}.jsonl"
    by_key = {entry["key"]: Prediction(**entry) for entry in read_metrics(path)} if rows else {}
    own = [p for p in by_key.values() if p.model == arm.model and p.references]
    return [
        _sample(arm, facts, shots, [p for p in own if p.shots == shots], f"{path}, {shots} shots")
        for shots in sorted(rows)
    ]


def _sample(
    arm: Arm, facts: Facts, shots: int, predictions: Sequence[Prediction], place: str
) -> Sample:
    row = arm.cells[facts.name, shots]
    by_query: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_query.setdefault(prediction.query, []).append(prediction)
    if len(by_query) < row["n"]:
        raise ValueError(
            f"{place}: expected predictions with references of {row['n']} queries, "
            f"got {len(by_query)}: evaluate the run again"
        )
    chosen = _chosen(by_query, row, place)
    ordered = [chosen[query] for query in sorted(chosen)]
    draws = max(map(len, ordered))
    matrix = [[query[draw % len(query)] for query in ordered] for draw in range(draws)]
    return Sample(arm, facts, shots, matrix, len(by_query) - row["n"])


def _chosen(
    by_query: dict[str, list[Prediction]], row: Row, place: str
) -> dict[str, list[Prediction]]:
    """At most one prediction a query and draw, those that ``row`` counts."""
    seeds = row["seeds"]
    newest = {query: own[-seeds:] for query, own in by_query.items()}
    oldest = {query: own[:seeds] for query, own in by_query.items()}
    if len(by_query) == row["n"]:
        for candidate in (newest, oldest):
            if _told(candidate, row):
                return candidate
    elif newest == oldest:  # more queries than counted: their numbers cannot be checked
        return newest
    raise ValueError(
        f"{place}: expected the {row['n']} queries x {seeds} draws that results.json counts, got "
        f"{sum(map(len, by_query.values()))} predictions of {len(by_query)} queries that do not "
        "give its numbers: they are of other settings too; evaluate into another run directory"
    )


def _told(chosen: dict[str, list[Prediction]], row: Row) -> bool:
    """Whether these predictions have the mean probability that ``row`` notes."""
    if not {len(own) for own in chosen.values()} <= {1, row["seeds"]}:
        return True  # some draws coincide, and it is not known how often each counts
    means = [math.fsum(p.probability for p in own) / len(own) for own in chosen.values()]
    return abs(math.fsum(means) / len(means) - row["probability"]) <= TOLERANCE


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
        a.query
        for a, b in zip(one.draws[0], other.draws[0], strict=True)
        if (a.cluster, sorted(a.references)) != (b.cluster, sorted(b.references))
    ]
    if differ:
        raise ValueError(
            f"{place}: expected the same queries, but {len(differ)} of {len(shared)} ids, such as "
            f"{differ[0]!r}, name another image or other references{told}"
        )
    return one, other
