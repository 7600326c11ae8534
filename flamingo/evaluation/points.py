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
from flamingo.evaluation.statistics import Z95, Estimate
from flamingo.evaluation.variance import decompose


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
        together.setdefault(key, []).append(Draw(cell, predictions, _scores(cell, predictions)))
    return [
        Point(draws[0].cell.benchmark, shots, condition, draws)
        for (_, shots, condition), draws in together.items()
    ]


def _scores(cell: Cell, predictions: Sequence[Prediction]) -> list[float] | None:
    references = [episode.references for episode in cell.episodes]
    if not all(references):
        return None
    return item_scores(cell.benchmark.task.metric, [p.answer for p in predictions], references)


# ---------------------------------------------------------------------------- numbers


def result(point: Point, queries: Sequence[int]) -> dict[str, Any]:
    """The point's metric on those of its ``queries`` (places), with its 95 % interval.

    Over several draws: the grand mean, whose error is that of new demonstrations and new images
    together; ``error_new_seeds`` and ``error_new_images`` report the two apart, each with the other
    held fixed. All NaN become None.
    """
    estimates = [_measured(draw, point.benchmark.task.metric, queries) for draw in point.draws]
    if len(estimates) == 1:
        row = asdict(estimates[0]) | {"seeds": 1}
    elif point.benchmark.task.metric is Metric.roc_auc:
        row = _averaged(estimates)
    else:
        scores = [[_score(draw, i) for i in queries] for draw in point.draws]
        clusters = [point.draws[0].clusters[i] for i in queries]
        row = asdict(decompose(scores, clusters))
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
    }


def _score(draw: Draw, query: int) -> float:
    assert draw.scores is not None
    return draw.scores[query]


def _measured(draw: Draw, metric: Metric, queries: Sequence[int]) -> Estimate:
    own = [draw.predictions[i] for i in queries]
    scores = [_score(draw, i) for i in queries]
    labels = [int(p.target == POSITIVE) for p in own]
    return measure(metric, scores, [p.cluster for p in own], list(map(positive, own)), labels)


def positive(prediction: Prediction) -> float:
    """The probability of :data:`POSITIVE` against the other of two candidates.

    0.0 where there are not two: nothing orders such answers.
    """
    if len(prediction.candidates) != 2 or POSITIVE not in prediction.candidates:
        return 0.0
    said = prediction.answer == POSITIVE
    return prediction.probability if said else 1 - prediction.probability


def _averaged(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Mean over draws of a metric that is no mean over queries.

    Its error adds the mean squared error of one draw, as images are the same in all of them, and
    the variance of the mean over draws: an upper bound, for the first holds some of the second.
    """
    means = np.array([estimate.mean for estimate in estimates])
    new_seeds = float(means.std(ddof=1) / math.sqrt(len(means)))
    new_images = float(np.sqrt(np.mean([e.standard_error**2 for e in estimates])))
    error = math.hypot(new_seeds, new_images)
    mean = float(means.mean())
    return {
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
