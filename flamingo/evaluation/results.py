"""From predictions to ``results.json``: means with intervals, controls, baselines, differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from flamingo.choices import Condition
from flamingo.evaluation.baseline_rows import baseline_rows
from flamingo.evaluation.baselines import PooledFeatures
from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.bias_rows import bias_rows
from flamingo.evaluation.differences import difference_rows, power_rows
from flamingo.evaluation.points import Point, Row, groups, points, result, row
from flamingo.evaluation.prompts import Template
from flamingo.evaluation.runner import Outcome
from flamingo.evaluation.secondary import calibration_bins, secondary
from flamingo.naming import ALL, naming
from flamingo.types import END_OF_CHUNK_TOKEN, IMAGE_TOKEN


def collect(
    benchmarks: Sequence[Benchmark],
    outcome: Outcome,
    pooled: PooledFeatures | None,
    settings: Row,
    *,
    step: int,
    seed: int,
) -> Row:
    """The content of ``results.json``. ``settings`` are what the predictions depend on.

    Rows of ``model``, ``baselines``, ``differences``, ``bias`` and ``power`` name ``benchmark``,
    ``shots``, ``condition`` and ``group``; numbers are unscaled (CIDEr can exceed 1), None where
    undefined.
    """
    seconds = outcome.seconds
    measured = [point for point in points(outcome) if point.annotated]
    differences = difference_rows(measured)
    return {
        "step": step,
        "seed": seed,
        "settings": settings,
        "benchmarks": benchmark_rows(benchmarks),
        "model": model_rows(measured),
        "baselines": baseline_rows(measured, pooled),
        "differences": differences,
        "bias": bias_rows(measured, differences),
        "power": power_rows(measured),
        "left_out": [asdict(o) | {"condition": o.condition.value} for o in outcome.left_out],
        "timing": {
            "new_predictions": outcome.new,
            "seconds": round(seconds, 1),
            "queries_per_second": round(outcome.new / seconds, 2) if outcome.new else None,
        },
    }


def benchmark_rows(benchmarks: Sequence[Benchmark]) -> list[Row]:
    """What a reader needs to know of each benchmark: how it was asked and what is measured."""
    return [
        {
            "name": b.name,
            "title": b.title,
            "unit": b.unit,
            "metric": b.task.metric.value,
            "normalization": naming(b.task.metric).normalization,
            "prompt": _prompt(b.task.template),
            "decoding": asdict(b.task.decoding),
            "chance": b.chance,
            "seed": b.seed,
            "demonstration_seeds": list(b.seeds),
        }
        for b in benchmarks
    ]


def _prompt(template: Template) -> str:
    """A demonstration as the model reads it, fields in braces."""
    text = f"{template.question}{template.answer}{END_OF_CHUNK_TOKEN}{template.separator}"
    return f"{IMAGE_TOKEN}{text}"


def model_rows(measured: Sequence[Point]) -> list[Row]:
    """A row a benchmark, shot count, condition and group of queries.

    ``metrics`` are the secondary ones by name; ``reliability`` the bins behind the ECE, for real
    prompts over all queries.
    """
    rows = []
    for point in measured:
        for group, places in groups(point):
            values = result(point, places) | {"probability": _probability(point, places)}
            values["metrics"] = secondary(point, places)
            if group == ALL and point.condition is Condition.real:
                values["reliability"] = calibration_bins(point, places)
            rows.append(row(point, point.condition.value, group, values))
    return rows


def _probability(point: Point, places: Sequence[int]) -> float:
    """The mean probability of the answers."""
    own = [draw.predictions[i].probability for draw in point.draws for i in places]
    return math.fsum(own) / len(own)
