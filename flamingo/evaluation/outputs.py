"""What an evaluation leaves besides predictions and results: plans, and files for servers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flamingo.choices import Condition
from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.plans import plan_file, write_plans
from flamingo.evaluation.runner import Outcome


def write_all_plans(benchmarks: Sequence[Benchmark], folder: Path) -> int:
    """The plans of every benchmark and seed below ``folder``; returns how many there are."""
    count = 0
    for benchmark in benchmarks:
        for seed in benchmark.seeds:
            plans = benchmark.plans(seed)
            write_plans(plans, plan_file(folder, benchmark.name, seed))
            count += len(plans)
    return count


def write_submissions(outcome: Outcome, folder: Path) -> list[Path]:
    """``<benchmark>_<shots>_shots.<format>`` for queries whose annotations are missing.

    Of the real condition, and of benchmarks that have a server. Where demonstrations were drawn by
    several seeds, ``_seed=<n>`` follows the shots. Returns the paths.
    """
    written = []
    for cell, predictions in outcome.cells:
        submit = cell.benchmark.submission
        annotated = all(episode.references for episode in cell.episodes)
        if submit is None or annotated or cell.condition is not Condition.real:
            continue
        seed = f"_seed={cell.seed}" if len(cell.benchmark.seeds) > 1 and cell.shots else ""
        name = f"{cell.benchmark.name}_{cell.shots}_shots{seed}"
        written.append(submit(folder / name, predictions))
    return written
