"""From predictions to ``results.json``: means with intervals, controls, baselines, differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from jaxtyping import Float
from torch import Tensor

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
from flamingo.evaluation.perturbations import Condition
from flamingo.evaluation.predictions import Prediction
from flamingo.evaluation.prompts import Episode
from flamingo.evaluation.runner import Cell, Outcome
from flamingo.evaluation.statistics import Estimate, estimate, paired_difference

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
    return {
        "step": step,
        "seed": seed,
        "settings": settings,
        "benchmarks": benchmark_rows(benchmarks),
        "model": model_rows(outcome),
        "baselines": baseline_rows(outcome, pooled),
        "differences": difference_rows(outcome),
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
        {"name": b.name, "title": b.title, "unit": b.unit, "chance": b.chance, "seed": b.seed}
        for b in benchmarks
    ]


def model_rows(outcome: Outcome) -> list[Row]:
    """A row a benchmark, shot count, condition and group of queries."""
    return [
        _row(cell, cell.condition.value, group, estimate(scores, clusters))
        | {"probability": math.fsum(p.probability for p in own) / len(own)}
        for cell, predictions in outcome.cells
        for group, own in _groups(predictions)
        for scores, clusters in [([p.score for p in own], [p.cluster for p in own])]
    ]


def difference_rows(outcome: Outcome) -> list[Row]:
    """How much better the model is than under each control, on the same queries."""
    real = {
        (cell.benchmark.name, cell.shots, p.query): p.score
        for cell, predictions in outcome.cells
        if cell.condition is Condition.real
        for p in predictions
    }
    rows = []
    for cell, predictions in outcome.cells:
        if cell.condition is not Condition.real:
            first = [real[cell.benchmark.name, cell.shots, p.query] for p in predictions]
            second = [p.score for p in predictions]
            result = paired_difference(first, second, [p.cluster for p in predictions])
            rows.append(_row(cell, f"real - {cell.condition.value}", ALL, result))
    return rows


def baseline_rows(outcome: Outcome, pooled: PooledFeatures | None) -> list[Row]:
    """The baselines on the queries of each real cell; the ceiling only with ``pooled`` features."""
    rows = []
    for cell, _ in outcome.cells:
        if cell.condition is not Condition.real:
            continue
        for baseline in Baseline:
            scores = _baseline_scores(baseline, cell, pooled)
            if scores is not None:
                result = estimate(scores, [episode.cluster for episode in cell.episodes])
                rows.append(_row(cell, baseline.value, ALL, result))
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
            return [cell.benchmark.chance] * len(episodes)
        case Baseline.centroid:
            if pooled is None or not context or not episodes[0].candidates:
                return None
            features = pooled.of(episodes)
            return [_centroid(e, f) for e, f in zip(episodes, features, strict=True)]


def _centroid(episode: Episode, features: Float[Tensor, "item dim"]) -> float:
    answers = [item.answer for item in episode.demonstrations]
    nearest = nearest_centroid(features[0], features[1:], answers)
    return exact_match(nearest, episode.query.answer)


def _groups(predictions: Sequence[Prediction]) -> list[tuple[str, list[Prediction]]]:
    """All predictions, then those of each group of queries."""
    names = sorted({p.group for p in predictions} - {""})
    return [(ALL, list(predictions))] + [
        (name, [p for p in predictions if p.group == name]) for name in names
    ]


def _row(cell: Cell, condition: str, group: str, result: Estimate) -> Row:
    values = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(result).items()
    }
    return {
        "benchmark": cell.benchmark.name,
        "shots": cell.shots,
        "condition": condition,
        "group": group,
        **values,
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
