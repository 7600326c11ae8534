"""Points of a shot curve: a benchmark at one shot count under one condition, over all draws."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flamingo.choices import Condition, Metric
from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.influence import Influence, roc_auc
from flamingo.evaluation.metrics.scores import POSITIVE, item_scores, measure
from flamingo.evaluation.predictions import Prediction
from flamingo.evaluation.runner import Cell, Outcome
from flamingo.evaluation.statistics import bounded_estimate, is_zero
from flamingo.evaluation.variance import decompose
from flamingo.naming import ALL, naming

Row = dict[str, Any]


@dataclass(frozen=True)
class Draw:
    """The predictions of a cell and their scores, in the order of its episodes.

    ``scores`` is None where annotations are missing.
    """

    cell: Cell
    predictions: Sequence[Prediction]
    scores: Sequence[float] | None

    @property
    def clusters(self) -> list[str]:
        return [prediction.cluster for prediction in self.predictions]


@dataclass(frozen=True)
class Point:
    """One draw for each seed of demonstrations, all on the same queries in the same order."""

    benchmark: Benchmark
    shots: int
    condition: Condition
    draws: Sequence[Draw]

    @property
    def annotated(self) -> bool:
        return all(draw.scores is not None for draw in self.draws)


def points(outcome: Outcome) -> list[Point]:
    """The cells of ``outcome``, those that differ in the draw alone together."""
    together: dict[tuple[str, int, Condition], list[Draw]] = {}
    for cell, predictions in outcome.cells:
        key = (cell.benchmark.name, cell.shots, cell.condition)
        together.setdefault(key, []).append(Draw(cell, predictions, scores_of(cell, predictions)))
    return [
        Point(draws[0].cell.benchmark, shots, condition, draws)
        for (_, shots, condition), draws in together.items()
    ]


def scores_of(cell: Cell, predictions: Sequence[Prediction]) -> list[float] | None:
    """The scores of a cell's ``predictions``, None where annotations are missing."""
    references = [episode.references for episode in cell.episodes]
    if not all(references):
        return None
    return item_scores(cell.benchmark.task.metric, [p.answer for p in predictions], references)


def groups(point: Point) -> list[tuple[str, list[int]]]:
    """The places of all queries, then those of each group of queries."""
    return by_group([prediction.group for prediction in point.draws[0].predictions])


def by_group(names: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The places of all queries, then those of each group, from the group of each ("": none)."""
    return [(ALL, list(range(len(names))))] + [
        (name, [i for i, group in enumerate(names) if group == name])
        for name in sorted(set(names) - {""})
    ]


def row(point: Point, condition: str, group: str, values: Row) -> Row:
    """A row of ``results.json``; None for NaN."""
    where = {"benchmark": point.benchmark.name, "shots": point.shots}
    return {**where, "condition": condition, "group": group, **without_nan(values)}


# ---------------------------------------------------------------------------- numbers


@dataclass(frozen=True, slots=True)
class Scored:
    """What one draw's answers are worth, and their probability of :data:`POSITIVE` (ROC-AUC)."""

    scores: Sequence[float]
    positive: Sequence[float]


def scored(point: Point, queries: Sequence[int]) -> list[Scored]:
    """The draws of an annotated point, on those of its ``queries`` (places)."""
    return [
        Scored([_score(draw, i) for i in queries], [positive(draw.predictions[i]) for i in queries])
        for draw in point.draws
    ]


def labels(point: Point, queries: Sequence[int]) -> list[int]:
    """1 where :data:`POSITIVE` is right."""
    return [int(point.draws[0].predictions[i].target == POSITIVE) for i in queries]


def result(point: Point, queries: Sequence[int]) -> dict[str, Any]:
    """The point's metric on those of its ``queries`` (places), as :func:`summary` gives it."""
    clusters = [point.draws[0].clusters[i] for i in queries]
    metric = point.benchmark.task.metric
    return summary(metric, scored(point, queries), clusters, labels(point, queries))


def summary(
    metric: Metric, draws: Sequence[Scored], clusters: Sequence[str], labels: Sequence[int]
) -> dict[str, Any]:
    """The metric of some answers with its 95 % interval.

    Over several draws: the grand mean, whose error is that of new demonstrations and new images
    together; ``error_new_seeds`` and ``error_new_images`` report the two apart, each with the other
    held fixed. Intervals do not leave the metric's range (none is negative), and keep a width when
    every answer is right; there is none where all are worth the same otherwise. All NaN become
    None.
    """
    if len(draws) == 1:
        own = measure(metric, draws[0].scores, clusters, draws[0].positive, labels)
        row = without_nan(asdict(own) | {"seeds": 1})
    elif metric is Metric.roc_auc:
        right = [label == 1 for label in labels]
        row = over_draws([roc_auc(np.array(draw.positive), right) for draw in draws], clusters)
    else:
        row = without_nan(asdict(decompose([draw.scores for draw in draws], clusters)))
    return in_range(row, share=naming(metric).share)


def over_draws(draws: Sequence[Influence], clusters: Sequence[Hashable]) -> Row:
    """A statistic that is no mean over queries, as :func:`summary` gives those that are.

    None for what is undefined, which it is if it is so in one draw.
    """
    undefined = [draw for draw in draws if math.isnan(draw.value)]
    if undefined or len(draws) == 1:
        own = (undefined or draws)[0].estimate(clusters)
        return without_nan(asdict(own) | {"seeds": len(draws)})
    return without_nan(asdict(decompose([draw.scores.tolist() for draw in draws], clusters)))


def in_range(row: Row, *, share: bool) -> Row:
    """With an interval that is not negative, of a ``share`` none above 1.

    A share of 0 or 1 without an error gets Wilson's interval at as many answers as images, any
    other number none: nothing tells how far another could be.
    """
    if row["low"] is None:
        return row
    if row["standard_error"] is not None and is_zero(row["standard_error"]):
        if not (share and row["mean"] in (0, 1)):
            return row | {"low": None, "high": None}
        kept = bounded_estimate(row["mean"], 0.0, row["n"], row["clusters"])
        return row | {"low": kept.low, "high": kept.high}
    return row | {
        "low": max(0.0, row["low"]),
        "high": min(1.0, row["high"]) if share else row["high"],
    }


def without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
    }


def _score(draw: Draw, query: int) -> float:
    assert draw.scores is not None
    return draw.scores[query]


def positive(prediction: Prediction) -> float:
    """The probability of :data:`POSITIVE` against the other of two candidates.

    0.0 where there are not two: nothing orders such answers.
    """
    if len(prediction.candidates) != 2 or POSITIVE not in prediction.candidates:
        return 0.0
    said = prediction.answer == POSITIVE
    return prediction.probability if said else 1 - prediction.probability
