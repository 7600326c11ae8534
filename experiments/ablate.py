"""Run a sweep: train and evaluate every arm with every seed, then compare the arms.

    python experiments/ablate.py experiment=ablation_gate_init dry_run=true   # what there is to do
    python experiments/ablate.py experiment=ablation_gate_init                # all of it
    python experiments/ablate.py experiment=ablation_gate_init at_once=2      # two runs at a time
    python experiments/ablate.py experiment=ablation_gate_init name=short training.steps=300
    python experiments/ablate.py experiment=my_sweep.yaml seeds=[0,1]
    python experiments/ablate.py experiment=... launcher=slurm hydra.launcher.partition=gpu

The sweeps are the files of conf/sweeps (docs/ablations.md). Every other key=value is told to each
of the runs, as to experiments/train.py (evaluation.* to experiments/evaluate.py); if that makes
other runs than the experiment's, they need a name= of their own.

One run after the other on a CPU, one on each GPU at a time (at_once= says otherwise), or all as
Slurm jobs. The same command passes over what is finished and continues what was interrupted. A run
that fails leaves the others alone; the status is then 1. SIGTERM and Ctrl-C stop all of it, with
checkpoints; only Slurm jobs that were launched go on (squeue, scancel).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from flamingo.ablation.outcome import (
    compare_finished,
    comparison_text,
    progress_of_all,
    write_comparison,
)
from flamingo.ablation.progress import Progress, Stage, check_asked, duration, seconds_left
from flamingo.ablation.sweep import SWEEPS, Sweep, SweepRun, compose_sweep
from flamingo.ablation.work import Outcome, Place, Workers, places
from flamingo.backbones.precision import available_device
from flamingo.command_line import entry_point, in_lists
from flamingo.comparison.output import Output
from flamingo.comparison.sweep import read_results, results_text
from flamingo.comparison.sweep_table import Results
from flamingo.files import write_atomically
from flamingo.structured import require


@dataclass(kw_only=True)
class AblateConfig:
    """Which sweep is run, and where."""

    sweep: str = ""
    """A file of conf/sweeps, or the path of one. Typed as experiment=, which is Hydra's word for a
    file of conf/experiment."""
    name: str | None = None
    """Of the runs: <name>/seed=0, <name>-<arm>/seed=0; default: that of the sweep's experiment."""
    seeds: list[int] | None = None
    """Instead of the sweep's."""
    runs: str = "runs"
    results: str = "experiments/results"
    """Gets <sweep>.json, or <sweep>-<name>.json."""
    launch: list[str] = field(default_factory=list)
    """What train.py and evaluate.py are told to run as Slurm jobs, all at once; typed as
    launcher=slurm hydra.launcher.partition=gpu. Default: here, a run at a time on each GPU, or one
    without a GPU."""
    at_once: int | None = None
    """Runs at work at a time, where nothing is launched; default: one on each GPU, or one. They
    share GPUs in turns and CPU cores evenly: small models train faster one on each core."""
    dry_run: bool = False
    """Print the plan and end."""
    overrides: list[str] = field(default_factory=list)
    """What every run is told; every key=value that is not one of the above is put here."""

    def __post_init__(self) -> None:
        slurm = not self.launch or "launcher=slurm" in self.launch
        require(slurm, "launch", "launcher=slurm among what has the runs launched", self.launch)
        require(self.at_once is None or self.at_once >= 1, "at_once", ">= 1", self.at_once)
        alone = self.at_once is None or not self.launch
        require(alone, "at_once", "none beside launch, which starts all", self.at_once)


def main(config: AblateConfig) -> None:
    """Run what is left of the sweep, compare, or end with a message."""
    if not config.sweep:
        known = ", ".join(sorted(file.stem for file in SWEEPS.glob("*.yaml")))
        raise ValueError(f"sweep: expected one of conf/sweeps ({known}) or a file of one, got none")
    sweep = compose_sweep(
        config.sweep,
        config.overrides,
        runs=config.runs,
        run_name=config.name,
        seeds=config.seeds,
    )
    check_kept(results_file(config, sweep), sweep)
    progress = progress_of_all(sweep)
    check_asked(sweep)
    left = [run for run, own in progress if own.stage is not Stage.finished]
    devices = devices_of(config, len(left))
    print(plan(sweep, progress, len(devices)), flush=True)
    if config.dry_run:
        return
    folder = Path(config.runs) / ".sweeps" / sweep.title
    workers = Workers(sweep, devices, folder / "logs", config.launch)
    failed = workers.run(left, Reporter(sweep, len(left), len(devices))) if left else []
    if workers.stopped is not None:
        print(STOPPED_WAITING if config.launch else "Stopped. The same command continues.")
        sys.exit(128 + workers.stopped)
    print(finish(sweep, folder, results_file(config, sweep)))
    if failed:
        told = "; ".join(f"{name_of(outcome.run)}: {outcome.log}" for outcome in failed)
        sys.exit(f"error: {len(failed)} of the runs failed, the others are done: {told}")


STOPPED_WAITING = (
    "Stopped waiting. Jobs that were launched go on (squeue, scancel); the same command continues "
    "when they have ended."
)


def devices_of(config: AblateConfig, runs: int) -> list[Place]:
    """A place for each run that is to be at work at the same time."""
    if config.launch:
        return [{}] * max(1, runs)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = torch.cuda.device_count() if available_device().type == "cuda" else 0
    return places(gpus, os.environ, config.at_once, cores or 1)


def plan(sweep: Sweep, progress: Sequence[tuple[SweepRun, Progress]], at_once: int) -> str:
    """The arms and what they change, how far their runs are, and how long the rest takes."""
    lines = [f"{sweep.title}: {sweep.config.question}", ""]
    steps = progress[0][0].config.training.steps
    width = max(map(len, sweep.arms))
    for arm in sweep.arms:
        told = ", ".join(sweep.config.arms.get(arm, [f"experiment={sweep.config.experiment}"]))
        lines.append(f"  {arm:<{width}}  {told}")
        own = [(run, state) for run, state in progress if run.arm == arm]
        said = "; ".join(f"seed {run.seed} {state.words}" for run, state in own)
        lines.append(f"  {'':<{width}}  {own[0][0].config.directory.parent}: {said}")
    finished = sum(state.stage is Stage.finished for _, state in progress)
    time = duration(seconds_left(progress, at_once))
    lines += [
        "",
        f"{len(progress)} runs of {steps:,} steps, {finished} finished; "
        f"{at_once} at a time; time left: {time}",
    ]
    return "\n".join(lines)


@dataclass
class Reporter:
    """Prints a line for each run that ends."""

    sweep: Sweep
    count: int
    at_once: int
    ended: int = 0
    failed: set[tuple[str, int]] = field(default_factory=set)
    """Arm and seed: these are not begun again."""

    def __call__(self, outcome: Outcome) -> None:
        self.ended += 1
        if outcome.stopped:
            return
        how = f"finished in {duration(outcome.seconds)}"
        if outcome.reason is not None:
            self.failed.add((outcome.run.arm, outcome.run.seed))
            how = f"FAILED after {duration(outcome.seconds)}: {outcome.reason}"
        left = ""
        if self.ended < self.count:
            progress = progress_of_all(self.sweep)
            others = [own for own in progress if (own[0].arm, own[0].seed) not in self.failed]
            time = seconds_left(others, self.at_once)
            left = f"; time left: {duration(time)}"
        name = name_of(outcome.run)
        print(f"[{self.ended}/{self.count}] {name}: {how}{left}", flush=True)


def name_of(run: SweepRun) -> str:
    """``closed, seed 0``."""
    return f"{run.arm}, seed {run.seed}"


def results_file(config: AblateConfig, sweep: Sweep) -> Path:
    """Where the results go."""
    return Path(config.results) / f"{sweep.title}.json"


def check_kept(path: Path, sweep: Sweep) -> None:
    """Raise ``ValueError`` if the file has results that those of ``sweep`` would not renew: of
    another question, or of arms or seeds that it has not."""
    if not path.exists():
        return
    kept = read_results(path)
    seeds = {seed for arm in kept["arms"] for seed in arm["seeds"]}
    for what, had, own in (
        ("question", {kept["question"]}, {sweep.config.question}),
        ("reference", {kept["reference"]}, {sweep.config.reference}),
        ("steps", {kept["steps"]}, {sweep.runs[0].config.training.steps}),
        ("arms", {arm["name"] for arm in kept["arms"]}, {*sweep.arms}),
        ("seeds", seeds, {*sweep.config.seeds}),
    ):
        if lost := sorted(had - own):
            raise ValueError(
                f"{path}: expected results that this sweep renews, got others, which would be "
                f"lost: {what} {', '.join(map(str, lost))}. Move the file, or give results=FOLDER"
            )


def check_complete(path: Path, results: Results) -> None:
    """Raise ``ValueError`` if the file has a seed of an arm that these ``results`` lack."""
    if not path.exists():
        return
    own = {arm["name"]: arm["seeds"] for arm in results["arms"]}
    lost = [
        f"{arm['name']}, seed {seed}"
        for arm in read_results(path)["arms"]
        for seed in arm["seeds"]
        if seed not in own.get(arm["name"], ())
    ]
    if lost:
        raise ValueError(
            f"{path}: expected these runs finished, as they are in this file, which is left as it "
            f"is: {'; '.join(lost)}"
        )


def finish(sweep: Sweep, folder: Path, path: Path) -> str:
    """Write the comparison of what is finished; returns its tables and where it is.

    Raises ``ValueError`` where the file of results would lose some.
    """
    results, missing = compare_finished(sweep, progress_of_all(sweep))
    write_comparison(results, Output.claim(folder / "comparison"))
    check_complete(path, results)
    write_atomically(path, results_text(results))
    where = f"Results: {path}; tables and plot: {folder / 'comparison'}"
    return f"\n{comparison_text(results, missing)}\n{where}"


LAUNCH = ("launcher=", "hydra.launcher.")


def gathered(arguments: Sequence[str]) -> list[str]:
    """``arguments`` as :class:`AblateConfig` takes them.

    ``experiment=`` becomes ``sweep=``; what is the launcher's is brought together as
    ``launch=[...]``, and what is the runs' as ``overrides=[...]``. Raises ``ValueError`` if one of
    these is typed out beside.
    """
    named = [re.sub("^experiment=", "sweep=", argument) for argument in arguments]
    return in_lists(named, AblateConfig, {"launch": LAUNCH})


if __name__ == "__main__":
    try:
        sys.argv[1:] = gathered(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
    entry_point(
        main,
        AblateConfig,
        "ablate",
        verbatim=["sweep", "runs", "results"],
    )
