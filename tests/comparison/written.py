"""Runs as an evaluation leaves them on disk, with answers that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from flamingo.choices import Metric
from flamingo.composition import compose
from flamingo.config import RunConfig
from flamingo.evaluation.predictions import Prediction
from flamingo.run_directory import RunDirectory
from flamingo.runs import Run, load_run

MODEL = "step_7-abc"


@cache
def default() -> RunConfig:
    return compose(["name=any"])


def predicted(
    number: int,
    answer: str,
    target: str = "yes",
    *,
    shots: int = 0,
    seed: int = 0,
    image: int | None = None,
    model: str = MODEL,
    **changes: Any,
) -> Prediction:
    """An answer to query ``number``, which is on an image of its own unless told otherwise."""
    values: dict[str, Any] = {
        "key": f"{model}-{number}-{shots}-{seed}-{answer}",
        "model": model,
        "query": f"test/{number}",
        "shots": shots,
        "demonstrations": [f"train/{seed}{place}" for place in range(shots)],
        "prompt_hash": "0",
        "prompt": "<image>shown? yes<|endofchunk|>" * shots + "<image>asked?",
        "candidates": [],
        "raw": answer,
        "answer": answer,
        "target": target,
        "probability": 0.5,
        "score": None,
        "group": "odd" if number % 2 else "even",
        "cluster": f"image/{number if image is None else image}",
        "references": [target],
    }
    return Prediction(**(values | changes))


def row(
    benchmark: str, predictions: Sequence[Prediction], condition: str = "real", seeds: int = 1
) -> dict[str, Any]:
    """What ``results.json`` says of predictions; its mean is not looked at by a comparison."""
    return {
        "benchmark": benchmark,
        "shots": predictions[0].shots,
        "condition": condition,
        "group": "all",
        "mean": 0.0,
        "n": len({p.query for p in predictions}),
        "seeds": seeds,
    }


def keys(predictions: Sequence[Prediction], draw: int) -> list[str]:
    """Of each query the ``draw``-th prediction; of those that draws share, the shared one."""
    by_query: dict[str, list[str]] = {}
    for prediction in predictions:
        by_query.setdefault(prediction.query, []).append(prediction.key)
    return [own[draw % len(own)] for own in by_query.values()]


def write_run(
    runs: Path,
    name: str,
    cells: Mapping[tuple[str, str], Sequence[Sequence[Prediction]]],
    *,
    metrics: Mapping[str, Metric] | None = None,
    seeds: int = 1,
    seed: int = 0,
    extra: Mapping[tuple[str, str], Sequence[Prediction]] | None = None,
    settings: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Run:
    """A run with the predictions ``cells`` of (benchmark, condition), a list a shot count, and
    ``extra`` ones at the head of the files, which its results do not count. ``config`` are fields
    of its configuration."""
    directory = RunDirectory.open(replace(default(), name=name, runs=str(runs), **(config or {})))
    rows, counted = [], []
    for (benchmark, condition), lists in cells.items():
        path = directory.predictions / benchmark / f"{condition}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [*(extra or {}).get((benchmark, condition), []), *(p for own in lists for p in own)]
        path.write_text("".join(json.dumps(asdict(p)) + "\n" for p in lines))
        for own in lists:
            draws = seeds if own[0].shots else 1
            rows.append(row(benchmark, own, condition, draws))
            counted += [
                {
                    "benchmark": benchmark,
                    "condition": condition,
                    "shots": own[0].shots,
                    "seed": draw,
                    "keys": keys(own, draw),
                }
                for draw in range(draws)
            ]
    results = {
        "step": 7,
        "seed": seed,
        "timing": {"seconds": 1.0},
        "settings": {"evaluation": {}, "model": MODEL, "precision": "float32", **(settings or {})},
        "benchmarks": [
            {
                "name": benchmark,
                "title": benchmark.upper(),
                "unit": "demonstrations",
                "metric": (metrics or {}).get(benchmark, Metric.exact_match).value,
                "chance": None,
                "seed": seed,
            }
            for benchmark in dict.fromkeys(benchmark for benchmark, _ in cells)
        ],
        "model": rows,
        "baselines": [],
        "differences": [],
        "left_out": [],
    }
    directory.cells.write_text("".join(json.dumps(cell) + "\n" for cell in counted))
    directory.results.write_text(json.dumps(results))
    return load_run(directory.path)


def answers(
    right: str, *, shots: int = 0, seed: int = 0, target: str = "yes", **changes: Any
) -> list[Prediction]:
    """``"1101"``: the third of four queries is answered wrongly."""
    return [
        predicted(i, target if digit == "1" else "wrong", target, shots=shots, seed=seed, **changes)
        for i, digit in enumerate(right)
    ]
