"""Points of a shot curve: a benchmark at one shot count under one condition, over all draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flamingo.choices import Condition, Metric
from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.metrics.scores import POSITIVE, item_scores, measure
from flamingo.evaluation.predictions import Prediction
from flamingo.evaluation.runner import Cell, Outcome
from flamingo.evaluation.statistics import Z95, Estimate, bounded_estimate
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
    names = [prediction.group for prediction in point.draws[0].predictions]
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
    every answer is right. All NaN become None.
    """
    if len(draws) > 1 and metric is not Metric.roc_auc:
        row = without_nan(asdict(decompose([draw.scores for draw in draws], clusters)))
    else:
        row = averaged([measure(metric, d.scores, clusters, d.positive, labels) for d in draws])
    return in_range(row, share=naming(metric).share)


def in_range(row: Row, *, share: bool) -> Row:
    """With an interval that is not negative, of a ``share`` none above 1.

    A share of 0 or 1 without an error gets Wilson's interval at as many answers as images.
    """
    if row["low"] is None:
        return row
    if share and row["standard_error"] == 0 and row["mean"] in (0, 1):
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


def averaged(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Mean over draws of a metric that is no mean over queries; of one draw the estimate itself.

    Its error adds the mean squared error of one draw, as images are the same in all of them, and
    the variance of the mean over draws: an upper bound, for the first holds some of the second.
    """
    if len(estimates) == 1:
        return without_nan(asdict(estimates[0]) | {"seeds": 1})
    means = np.array([estimate.mean for estimate in estimates])
    new_seeds = float(means.std(ddof=1) / math.sqrt(len(means)))
    new_images = float(np.sqrt(np.mean([e.standard_error**2 for e in estimates])))
    error = math.hypot(new_seeds, new_images)
    mean = float(means.mean())
    return without_nan(
        {
            "mean": mean,
            "standard_error": error,
            "low": mean - Z95 * error,
            "high": mean + Z95 * error,
            "n": estimates[0].n,
            "clusters": estimates[0].clusters,
            "seeds": len(estimates),
            "error_new_seeds": new_seeds,
            "error_new_images": new_images,
        }
    )
