"""What is compared: an *arm* is a run under a condition, with a label for readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flamingo.choices import Condition, Metric
from flamingo.evaluation.points import Row
from flamingo.naming import ALL
from flamingo.runs import Run


@dataclass(frozen=True, slots=True)
class Facts:
    """What ``results.json`` says of a benchmark."""

    name: str
    title: str
    unit: str
    metric: Metric
    seed: int


@dataclass(frozen=True)
class Arm:
    """A run under a condition. ``results`` is the content of its run's ``results.json``."""

    label: str
    run: Run
    condition: Condition
    results: Row

    @property
    def benchmarks(self) -> dict[str, Facts]:
        """By name."""
        return {
            row["name"]: Facts(
                row["name"], row["title"], row["unit"], Metric(row["metric"]), row["seed"]
            )
            for row in self.results["benchmarks"]
        }

    @property
    def cells(self) -> dict[tuple[str, int], Row]:
        """The result over all queries of each benchmark and shot count that has one."""
        return {
            (row["benchmark"], row["shots"]): row
            for row in self.results["model"]
            if row["condition"] == self.condition.value and row["group"] == ALL
        }

    @cached_property
    def counted(self) -> list[Row]:
        """The lines of ``cells.jsonl`` under its condition. Raises as :attr:`Run.cells`."""
        return [cell for cell in self.run.cells if cell["condition"] == self.condition.value]


def make_arms(
    runs: Sequence[Run], conditions: Sequence[Condition], labels: Sequence[str] | None = None
) -> list[Arm]:
    """Every run under every condition: the first run's conditions, then the second's, and so on.

    Raises ``ValueError`` for no run, a run without results or without one of the conditions (naming
    those it has), another number of labels, or two arms of one label.
    """
    if not runs or not conditions:
        raise ValueError(
            f"runs, conditions: expected at least one of each, got {len(runs)} and "
            f"{len(conditions)}"
        )
    count = len(runs) * len(conditions)
    if labels is not None and len(labels) != count:
        raise ValueError(
            f"labels: expected {count}, one for each of {len(runs)} runs x {len(conditions)} "
            f"conditions, got {len(labels)}"
        )
    arms = []
    for run in runs:
        results = run.results
        for condition in conditions:
            label = labels[len(arms)] if labels else _label(run, condition)
            arms.append(Arm(label, run, condition, results))
            _check(arms[-1])
    names = [arm.label for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"labels: expected a different one for each arm, got {twice} twice: name each run and "
            "condition once, or give labels=[...]"
        )
    return arms


def _label(run: Run, condition: Condition) -> str:
    name = f"{run.config.name}, seed {run.config.seed}"
    return name if condition is Condition.real else f"{name}: {condition.label}"


def _check(arm: Arm) -> None:
    if not arm.benchmarks or not arm.cells:
        known = sorted({row["condition"] for row in arm.results["model"]})
        raise ValueError(
            f"conditions: expected some of {known}, with which {arm.run.path} was evaluated, "
            f"got {arm.condition.value}"
        )


def shared_benchmarks(arms: Sequence[Arm], asked: Sequence[str] | None = None) -> list[Facts]:
    """The benchmarks to compare on: ``asked``, or all that any arm has, in the order of the arms.

    Raises ``ValueError`` for an unknown one (naming those there are), and where two arms measure
    one benchmark by different metrics.
    """
    found: dict[str, Facts] = {}
    for arm in arms:
        measured = {name for name, _ in arm.cells}
        for name, facts in arm.benchmarks.items():
            if name not in measured:
                continue
            first = found.setdefault(name, facts)
            if first.metric is not facts.metric:
                raise ValueError(
                    f"{name}: expected one metric for all arms, got {first.metric.value} and "
                    f"{facts.metric.value} ({arm.label}): evaluate them under one protocol"
                )
    if asked is None:
        return list(found.values())
    if unknown := [name for name in asked if name not in found]:
        raise ValueError(f"benchmarks: expected some of {sorted(found)}, got {unknown}")
    return [found[name] for name in asked]


def cautions(arms: Sequence[Arm]) -> list[str]:
    """What differs between the arms' evaluations besides what is compared, and which of them are of
    runs before their last step, for readers."""
    notes = []
    for name, path in (
        ("protocol", ("settings", "evaluation", "protocol")),
        ("precision", ("settings", "precision")),
        ("evaluation seed", ("seed",)),
    ):
        values = {arm.label: _at(arm.results, path) for arm in arms}
        if len(set(values.values())) > 1:
            told = "; ".join(f"{label}: {value}" for label, value in values.items())
            notes.append(f"The arms were evaluated under different {name}s ({told}).")
    parts: dict[str, list[str]] = {}
    for arm in arms:
        if part := arm.run.part_of_training(arm.results["step"]):
            parts.setdefault(part, []).append(arm.label)
    notes += [f"Evaluated after {part}: {'; '.join(own)}." for part, own in parts.items()]
    return notes


def _at(values: Any, path: Sequence[str]) -> str:
    for key in path:
        values = values.get(key, {})
    return str(values or "unknown") if not isinstance(values, int) else str(values)
