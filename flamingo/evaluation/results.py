"""From predictions to ``results.json``: means with intervals, controls, baselines, differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from jaxtyping import Float
from torch import Tensor

from flamingo.choices import Condition
from flamingo.evaluation.baselines import (
    Baseline,
    PooledFeatures,
    last,
    majority,
    nearest_centroid,
    prior,
)
from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.metrics.classification import exact_match
from flamingo.evaluation.points import Point, points, result
from flamingo.evaluation.prompts import Episode
from flamingo.evaluation.runner import Cell, Outcome
from flamingo.evaluation.statistics import estimate, paired_difference
from flamingo.evaluation.variance import decompose

ALL = "all"
"""Group of the cells over all queries."""
Row = dict[str, Any]


def collect(
    benchmarks: Sequence[Benchmark],
    outcome: Outcome,
    pooled: PooledFeatures | None,
    settings: Row,
    *,
    step: int,
    seed: int,
) -> Row:
    """The content of ``results.json``. ``settings`` are what the predictions depend on."""
    seconds = outcome.seconds
    measured = [point for point in points(outcome) if point.annotated]
    return {
        "step": step,
        "seed": seed,
        "settings": settings,
        "benchmarks": benchmark_rows(benchmarks),
        "model": model_rows(measured),
        "baselines": baseline_rows(measured, pooled),
        "differences": difference_rows(measured),
        "left_out": [asdict(left) for left in outcome.left_out],
        "timing": {
            "new_predictions": outcome.new,
            "seconds": round(seconds, 1),
            "queries_per_second": round(outcome.new / seconds, 2) if outcome.new else None,
        },
    }


def benchmark_rows(benchmarks: Sequence[Benchmark]) -> list[Row]:
    """What a reader needs to know of each benchmark."""
    return [
        {
            "name": b.name,
            "title": b.title,
            "unit": b.unit,
            "metric": b.task.metric.value,
            "chance": b.chance,
            "seed": b.seed,
            "demonstration_seeds": list(b.seeds),
        }
        for b in benchmarks
    ]


def model_rows(measured: Sequence[Point]) -> list[Row]:
    """A row a benchmark, shot count, condition and group of queries."""
    return [
        _row(point, point.condition.value, group, result(point, places))
        | {"probability": _probability(point, places)}
        for point in measured
        for group, places in _groups(point)
    ]


def _probability(point: Point, places: Sequence[int]) -> float:
    """The mean probability of the answers."""
    own = [draw.predictions[i].probability for draw in point.draws for i in places]
    return math.fsum(own) / len(own)


def difference_rows(measured: Sequence[Point]) -> list[Row]:
    """How much better the model is than under each control, on the same queries."""
    real = {
        (point.benchmark.name, point.shots): point
        for point in measured
        if point.condition is Condition.real
    }
    rows = []
    for point in measured:
        if point.condition is not Condition.real:
            first, second = _paired(real[point.benchmark.name, point.shots], point)
            clusters = point.draws[0].clusters
            if len(first) == 1:
                estimated = asdict(paired_difference(first[0], second[0], clusters))
            else:
                differences = [
                    [a - b for a, b in zip(one, other, strict=True)]
                    for one, other in zip(first, second, strict=True)
                ]
                estimated = asdict(decompose(differences, clusters))
            rows.append(_row(point, f"real - {point.condition.value}", ALL, estimated))
    return rows


def _paired(real: Point, control: Point) -> tuple[list[Sequence[float]], list[Sequence[float]]]:
    """Scores (seed, query) of both, on the control's queries and seeds."""
    by_seed = {draw.cell.seed: draw for draw in real.draws}
    first, second = [], []
    for draw in control.draws:
        own = by_seed[draw.cell.seed]
        assert own.scores is not None and draw.scores is not None
        scores = dict(zip([p.query for p in own.predictions], own.scores, strict=True))
        first.append([scores[p.query] for p in draw.predictions])
        second.append(draw.scores)
    return first, second


def baseline_rows(measured: Sequence[Point], pooled: PooledFeatures | None) -> list[Row]:
    """The baselines on the queries of each real point, with its first draw of demonstrations.

    The ceiling only with ``pooled`` features.
    """
    rows = []
    for point in measured:
        if point.condition is not Condition.real:
            continue
        for baseline in Baseline:
            scores = _baseline_scores(baseline, point.draws[0].cell, pooled)
            if scores is not None:
                estimated = estimate(scores, point.draws[0].clusters)
                rows.append(_row(point, baseline.value, ALL, asdict(estimated)))
    return rows


def _baseline_scores(
    baseline: Baseline, cell: Cell, pooled: PooledFeatures | None
) -> list[float] | None:
    """One score a query, None where the baseline does not apply."""
    episodes, context = cell.episodes, bool(cell.episodes[0].demonstrations)
    match baseline:
        case Baseline.majority:
            return [majority(episode) for episode in episodes] if context else None
        case Baseline.last:
            return [last(episode) for episode in episodes] if context else None
        case Baseline.prior:
            answers = cell.benchmark.prior()
            return None if answers is None else [prior(e, answers) for e in episodes]
        case Baseline.chance:
            chance = cell.benchmark.chance
            return None if chance is None else [chance] * len(episodes)
        case Baseline.centroid:
            if pooled is None or not context or not episodes[0].candidates:
                return None
            features = pooled.of(episodes)
            return [_centroid(e, f) for e, f in zip(episodes, features, strict=True)]


def _centroid(episode: Episode, features: Float[Tensor, "item dim"]) -> float:
    answers = [item.answer for item in episode.demonstrations]
    nearest = nearest_centroid(features[0], features[1:], answers)
    return exact_match(nearest, episode.query.answer)


def _groups(point: Point) -> list[tuple[str, list[int]]]:
    """The places of all queries, then those of each group of queries."""
    groups = [prediction.group for prediction in point.draws[0].predictions]
    return [(ALL, list(range(len(groups))))] + [
        (name, [i for i, group in enumerate(groups) if group == name])
        for name in sorted(set(groups) - {""})
    ]


def _row(point: Point, condition: str, group: str, values: Row) -> Row:
    return {
        "benchmark": point.benchmark.name,
        "shots": point.shots,
        "condition": condition,
        "group": group,
        **{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()},
    }


def table(results: Row) -> str:
    """The real and control accuracies as a table to print: a line a benchmark and condition."""
    shots = sorted({row["shots"] for row in results["model"]})
    lines = [
        ["benchmark", "", *(f"{count} shots" for count in shots)],
    ]
    for benchmark in results["benchmarks"]:
        title = benchmark["title"]
        for condition, label in CONDITION_LABELS.items():
            cells = {
                row["shots"]: row
                for row in (*results["model"], *results["baselines"])
                if row["benchmark"] == benchmark["name"]
                and row["condition"] == condition
                and row["group"] == ALL
            }
            if cells:
                lines.append([title, label, *(_percent(cells.get(count)) for count in shots)])
                title = ""
    return _aligned(lines)


CONDITION_LABELS = {condition.value: condition.label for condition in Condition} | {
    "centroid": "nearest centroid (ceiling)",
    "prior": "best answer to the question alone",
    "majority": "majority of demonstrations",
    "last": "last demonstration",
    "chance": "chance",
}


def _percent(row: Row | None) -> str:
    if row is None:
        return "-"
    error = row["standard_error"]
    return f"{100 * row['mean']:.1f}" + (f" ±{100 * error:.1f}" if error else "")


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """A markdown table with columns of equal width; numbers to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(
        "| "
        + " | ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in [lines[0], rule, *lines[1:]]
    )
