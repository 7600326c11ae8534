"""From the evaluated runs of a sweep to its results: numbers that a small JSON file holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo.choices import Condition, Metric
from flamingo.comparison.arms import Facts, make_arms, shared_benchmarks
from flamingo.comparison.samples import Sample, read_samples
from flamingo.comparison.seeds import OverSeeds, difference_over_seeds, mean_over_seeds
from flamingo.evaluation.corrections import holm
from flamingo.evaluation_config import settings_of
from flamingo.identity import differences
from flamingo.naming import naming
from flamingo.provenance import circumstances, git_state
from flamingo.runs import Run

DIGITS = 6
Cell = tuple[str, int]
"""A benchmark's name, and shots."""


@dataclass(frozen=True)
class SweepArm:
    """An arm: evaluated runs that differ in their seed, and what it changes of the reference."""

    name: str
    runs: Sequence[Run]
    overrides: Sequence[str] = ()
    changes: Mapping[str, tuple[Any, Any]] | None = None

    @property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs]


def compare_sweep(
    title: str, question: str, arms: Sequence[SweepArm], *, shots: int = 4
) -> dict[str, Any]:
    """What the runs of ``arms`` say; the first arm is the reference.

    Differences are on the seeds that an arm and the reference share. They are tested at the most
    shots up to ``shots`` of each benchmark: p-values there are corrected by Holm's method over all
    arms and benchmarks; there each arm's controls are told too. Raises ``ValueError`` for runs that
    cannot be compared (:func:`check`), for an arm without a run or without a seed of the
    reference's, and as ``read_samples`` does.
    """
    check(arms)
    facts, left_out = _facts(arms)
    read = {arm.name: _matrices(arm, facts) for arm in arms}
    reference, rows = arms[0], []
    for arm in arms[1:]:
        shared = [seed for seed in arm.seeds if seed in reference.seeds]
        if not shared:
            raise ValueError(
                f"{arm.name!r}: expected a seed of {reference.name!r} ({reference.seeds}), "
                f"got {arm.seeds}"
            )
        for cell, own in read[arm.name].items():
            if cell in read[reference.name]:
                found = _difference(own, read[reference.name][cell], shared)
                rows.append({"arm": arm.name, **_where(cell), **found, "seeds": shared})
    tested = _tested_shots(rows, shots)
    _test(rows, tested)
    return {
        "sweep": title,
        "question": question,
        "date": circumstances()["time"],
        **git_state(),
        "steps": reference.runs[0].config.training.steps,
        "reference": reference.name,
        "tested_at_shots": shots,
        "arms": [_arm(arm) for arm in arms],
        "benchmarks": [
            {"name": own.name, "title": own.title, "unit": own.unit, "metric": own.metric.value}
            for own in facts
        ],
        "cells": [
            {"arm": arm.name, **_where(cell), **_mean(own), "seeds": arm.seeds}
            for arm in arms
            for cell, own in read[arm.name].items()
        ],
        "controls": _controls(arms, facts, tested),
        "differences": rows,
        "left_out": left_out,
    }


# ---------------------------------------------------------------------------- what may be compared


def check(arms: Sequence[SweepArm]) -> None:
    """Raise ``ValueError`` naming the run unless all were trained as long and asked the same.

    Runs of an arm may differ in nothing but their seed. Training data may differ between arms: an
    arm may be about them, and what it changes is told with the results.
    """
    if len(arms) < 2:
        raise ValueError(f"arms: expected the reference and at least one more, got {len(arms)}")
    for arm in arms:
        if not arm.runs:
            raise ValueError(f"{arm.name!r}: expected at least one evaluated run, got none")
        if len(set(arm.seeds)) < len(arm.runs):
            raise ValueError(f"{arm.name!r}: expected different seeds, got {arm.seeds}")
        for run in arm.runs[1:]:
            unlike = differences(arm.runs[0].config, run.config)
            if other := {k: v for k, v in unlike.items() if k not in ("seed", "name")}:
                told = ", ".join(f"{k} {a!r} and {b!r}" for k, (a, b) in other.items())
                raise ValueError(
                    f"{arm.name!r}: expected runs that differ in their seed alone, got {told} in "
                    f"{arm.runs[0].path} and {run.path}"
                )
    first = arms[0].runs[0]
    for run in (run for arm in arms for run in arm.runs):
        for what, own, other in zip(
            ("training steps", "the evaluated step", "data sets and settings of the evaluation"),
            _circumstances(run),
            _circumstances(first),
            strict=True,
        ):
            if own != other:
                raise ValueError(
                    f"{run.path}: expected {what} as {first.path} has, got {_unlike(own, other)}"
                )


def _circumstances(run: Run) -> tuple[Any, Any, Any]:
    results = run.results
    return run.config.training.steps, results["step"], settings_of(results, run.directory.results)


def _unlike(own: Any, other: Any) -> str:
    if not isinstance(own, dict):
        return f"{own!r}, not {other!r}"
    keys = [key for key in sorted({*own, *other}) if own.get(key) != other.get(key)]
    return "; ".join(f"evaluation.{k} {own.get(k)!r}, not {other.get(k)!r}" for k in keys)


# ---------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class _Matrix:
    """The samples of one cell by training seed, all on the same queries."""

    samples: Mapping[int, Sample]

    @property
    def any(self) -> Sample:
        return next(iter(self.samples.values()))

    def scores(self, seeds: Sequence[int]) -> np.ndarray:
        return np.stack([self.samples[seed].means for seed in seeds])


def _facts(arms: Sequence[SweepArm]) -> tuple[list[Facts], list[str]]:
    """Benchmarks whose metric is a mean over queries, and the names of others."""
    every = make_arms(
        [run for arm in arms for run in arm.runs],
        [Condition.real],
        [f"{arm.name}, seed {run.config.seed}" for arm in arms for run in arm.runs],
    )
    found = shared_benchmarks(every)
    means = [own for own in found if own.metric is not Metric.roc_auc]
    return means, [own.name for own in found if own not in means]


def _controls(
    arms: Sequence[SweepArm], facts: Sequence[Facts], shots: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Scores under the conditions beside the model's own that all runs have, where arms are
    tested."""
    evaluated = [
        {row["condition"] for row in run.results["model"]} for arm in arms for run in arm.runs
    ]
    shared = set.intersection(*evaluated) - {Condition.real.value}
    return [
        {"arm": arm.name, "condition": condition.value, **_where(cell), **_mean(own)}
        for condition in Condition
        if condition.value in shared
        for arm in arms
        for cell, own in _matrices(arm, facts, condition).items()
        if shots.get(cell[0]) == cell[1]
    ]


def _matrices(
    arm: SweepArm, facts: Sequence[Facts], condition: Condition = Condition.real
) -> dict[Cell, _Matrix]:
    samples: dict[Cell, dict[int, Sample]] = {}
    for run in arm.runs:
        (single,) = make_arms([run], [condition])
        for own in facts:
            for sample in read_samples(single, own):
                samples.setdefault((own.name, sample.shots), {})[run.config.seed] = sample
    for cell, by_seed in samples.items():
        _same_queries(cell, list(by_seed.values()))
    return {cell: _Matrix(own) for cell, own in samples.items() if len(own) == len(arm.runs)}


def _same_queries(cell: Cell, samples: Sequence[Sample]) -> None:
    first = [(p.query, p.cluster, sorted(p.references)) for p in samples[0].draws[0]]
    for sample in samples[1:]:
        if [(p.query, p.cluster, sorted(p.references)) for p in sample.draws[0]] != first:
            raise ValueError(
                f"{cell[0]}, {cell[1]} shots: expected the queries of {samples[0].arm.run.path} in "
                f"{sample.arm.run.path} too, got others"
            )


def _mean(own: _Matrix) -> dict[str, Any]:
    share = naming(own.any.facts.metric).share
    scores = own.scores(list(own.samples))
    return _row(mean_over_seeds(scores, own.any.clusters, share=share), "mean")


def _difference(arm: _Matrix, reference: _Matrix, seeds: Sequence[int]) -> dict[str, Any]:
    _same_queries((arm.any.facts.name, arm.any.shots), [reference.any, arm.any])
    found = difference_over_seeds(
        arm.scores(seeds),
        reference.scores(seeds),
        arm.any.clusters,
        share=naming(arm.any.facts.metric).share,
    )
    return {**_row(found, "difference"), "p": _rounded(found.p_value)}


def _row(found: OverSeeds, name: str) -> dict[str, Any]:
    return {
        name: _rounded(found.mean),
        "standard_error": _rounded(found.standard_error),
        "low": _rounded(found.low),
        "high": _rounded(found.high),
        "by_seed": [_rounded(value) for value in found.by_seed],
        "n": found.n,
        "images": found.images,
    }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, DIGITS)


def _where(cell: Cell) -> dict[str, Any]:
    return {"benchmark": cell[0], "shots": cell[1]}


def _tested_shots(rows: Sequence[Mapping[str, Any]], shots: int) -> dict[str, int]:
    """Of each benchmark the most up to ``shots`` that there are differences at."""
    most: dict[str, int] = {}
    for row in rows:
        if row["shots"] <= shots:
            most[row["benchmark"]] = max(row["shots"], most.get(row["benchmark"], 0))
    return most


def _test(rows: Sequence[dict[str, Any]], shots: Mapping[str, int]) -> None:
    """Say of each row whether it is tested, and the corrected p-value of those that are."""
    tested = [row for row in rows if shots.get(row["benchmark"]) == row["shots"]]
    told = [row for row in tested if row["p"] is not None]
    corrected = dict(zip(map(id, told), holm([row["p"] for row in told]), strict=True))
    marked = {id(row) for row in tested}
    for row in rows:
        row["tested"] = id(row) in marked
        p_value = corrected.get(id(row))
        row["p_holm"] = None if p_value is None else _rounded(p_value)


def _arm(arm: SweepArm) -> dict[str, Any]:
    commits = {
        launch["git"]["commit"]
        for run in arm.runs
        if run.directory.provenance.exists()
        for launch in run.provenance["launches"]
    }
    changed = {key: list(both) for key, both in (arm.changes or {}).items()}
    return {
        "name": arm.name,
        "overrides": list(arm.overrides),
        "changes": changed,
        "seeds": arm.seeds,
        "runs": sorted({run.config.name for run in arm.runs}),
        "commits": sorted(commit for commit in commits if commit),
    }


# ---------------------------------------------------------------------------- files


def results_text(results: Mapping[str, Any]) -> str:
    """``results`` as JSON: a line an entry of its lists, for readable differences."""
    lines = []
    for key, value in results.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
            lines.append(f" {json.dumps(key)}: [\n  {rows}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_results(path: Path) -> dict[str, Any]:
    """What :func:`results_text` made. Raises ``ValueError`` naming the file for anything else."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        missing = {
            *("sweep", "question", "steps", "reference"),
            *("arms", "cells", "differences"),
        } - results.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected the results of a sweep: {error}") from error
    if missing:
        raise ValueError(f"{path}: expected the results of a sweep, which has {sorted(missing)}")
    return results
