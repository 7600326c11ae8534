"""The comparison of a sweep's finished runs, and its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flamingo.ablation.progress import Progress, Stage, progress_of
from flamingo.ablation.sweep import Sweep, SweepRun
from flamingo.comparison.formats import csv, latex, markdown
from flamingo.comparison.output import Output
from flamingo.comparison.sweep import SweepArm, compare_sweep, results_text
from flamingo.comparison.sweep_table import Results, sweep_markdown, sweep_tables, tested_rows
from flamingo.plots import figure_bytes, plot_forest
from flamingo.runs import load_run


def progress_of_all(sweep: Sweep) -> list[tuple[SweepRun, Progress]]:
    """Every run and how far it is. Raises ``ValueError`` for a folder of another configuration."""
    return [(run, progress_of(run.config, sweep.overrides)) for run in sweep.runs]


def compare_finished(
    sweep: Sweep, progress: Sequence[tuple[SweepRun, Progress]]
) -> tuple[dict[str, Any], list[str]]:
    """Results of the arms that share a finished seed with the reference, and the other arms.

    Raises ``ValueError`` if there is no such arm, and as ``compare_sweep`` does.
    """
    finished = {
        arm: [run for run, own in progress if run.arm == arm and own.stage is Stage.finished]
        for arm in sweep.arms
    }
    seeds = {run.seed for run in finished[sweep.config.reference]}
    usable = [arm for arm in sweep.arms if seeds & {run.seed for run in finished[arm]}]
    if len(usable) < 2:
        states = "; ".join(f"{run.arm}, seed {run.seed}: {own.words}" for run, own in progress)
        raise ValueError(
            f"{sweep.title}: expected an arm with a finished seed that {sweep.config.reference!r} "
            f"has too, got {states}"
        )
    arms = [
        SweepArm(
            name=arm,
            runs=[load_run(run.config.directory) for run in finished[arm]],
            overrides=[*sweep.config.arms.get(arm, ()), *sweep.overrides],
            changes=sweep.changes(arm),
        )
        for arm in usable
    ]
    results = compare_sweep(sweep.title, sweep.config.question, arms, shots=sweep.config.shots)
    return results, [arm for arm in sweep.arms if arm not in usable]


def comparison_text(results: Results, missing: Sequence[str]) -> str:
    """The tables, and the arms that are ``missing`` in them."""
    left = f"\nWithout a finished seed of the reference's: {', '.join(missing)}." if missing else ""
    return sweep_markdown(results) + left


def write_comparison(results: Results, output: Output) -> None:
    """Tables as Markdown, LaTeX and CSV, ``forest.png`` and ``.svg``, and ``results.json``."""
    output.write("results.json", results_text(results))
    for table in sweep_tables(results):
        for suffix, render in (("md", markdown), ("tex", latex), ("csv", csv)):
            output.write(f"{table.name}.{suffix}", render(table))
    figure = plot_forest(tested_rows(results), reference=results["reference"])
    for kind in ("png", "svg"):
        output.write(f"forest.{kind}", figure_bytes(figure, kind))
