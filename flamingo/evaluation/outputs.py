"""What an evaluation leaves besides predictions and results: plans, cells, files for servers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from flamingo.choices import Condition
from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.plans import plan_file, plan_lines, write_plans
from flamingo.evaluation.runner import Outcome
from flamingo.files import write_atomically


def write_all_plans(benchmarks: Sequence[Benchmark], folder: Path, *, replace: bool = True) -> int:
    """The plans of every benchmark and seed below ``folder``; returns how many there are.

    Unless they are to ``replace`` others, raises ``ValueError`` naming a file that has other plans,
    and writes nothing.
    """
    made = {
        plan_file(folder, benchmark.name, seed): benchmark.plans(seed)
        for benchmark in benchmarks
        for seed in benchmark.seeds
    }
    for file, plans in made.items():
        if not replace and file.exists() and file.read_text("utf-8") != plan_lines(plans):
            raise ValueError(
                f"{file}: expected no plans, or the same, got others (of other settings, or "
                "edited), which would be lost: move or remove the file"
            )
    for file, plans in made.items():
        write_plans(plans, file)
    return sum(map(len, made.values()))


def write_cells(outcome: Outcome, path: Path) -> None:
    """A JSON line a cell: the keys of its predictions, in the order of its queries.

    They tell which lines of ``predictions/`` the results count: those hold what was predicted under
    any settings.
    """
    cells = [
        {
            "benchmark": cell.benchmark.name,
            "condition": cell.condition.value,
            "shots": cell.shots,
            "seed": cell.seed,
            "keys": list(cell.keys),
        }
        for cell, _ in outcome.cells
    ]
    write_atomically(path, "".join(json.dumps(cell) + "\n" for cell in cells))


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
