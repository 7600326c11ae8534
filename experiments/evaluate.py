"""Evaluate a trained run in context: benchmarks, shot counts, controls, baselines, and the report.

    python experiments/evaluate.py run=runs/quickstart/seed=0
    python experiments/evaluate.py run=... evaluation.folder.path=photos/     # classes by folder
    python experiments/evaluate.py run=... evaluation.shots=[0,4] evaluation.batch_size=32
    python experiments/evaluate.py run=... benchmark=[vqav2,coco] data_root=/data
    python experiments/evaluate.py run=... benchmark=vizwiz protocol=open_flamingo
    accelerate launch --num_processes 8 experiments/evaluate.py run=...   # on 8 GPUs
    torchrun --nproc_per_node 4 experiments/evaluate.py run=...           # on a CPU of many cores

What is given under evaluation.* changes the run's own evaluation settings (its config.yaml); the
defaults listed below hold only where neither says anything.

benchmark= ADDS benchmarks to the run's own, which evaluation.<benchmark>=null switches off: one or
several of the files of conf/benchmark/ (docs/evaluation.md lists them), which say where below
data_root (default: data) the data are looked for. protocol=open_flamingo evaluates as OpenFlamingo
did. What evaluation.* says comes last.

Which demonstrations each query gets is written to the run's plans/. plan_only=true writes it to
planned/ and ends; evaluation.demonstrations.plans=<folder> evaluates with such plans, as written
or edited. For test splits without annotations a file for the benchmark's server is written to
submissions/.

Predictions are kept as they come, so the same command continues after an interruption, on any
number of processes, and does nothing twice. results.json and report/ are of the newest settings;
those of other settings before them are in evaluations/<date>/ beside them; asking for these again
makes them the newest, of the predictions that are kept.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from flamingo.command_line import entry_point
from flamingo.composition import CONF, as_typed, update_evaluation
from flamingo.config import RunConfig
from flamingo.evaluation import archive
from flamingo.evaluation.outputs import write_all_plans
from flamingo.evaluation.processes import ALONE, OtherProcessEnded, Processes, launched
from flamingo.evaluation.tables import table
from flamingo.evaluation_config import EvaluateConfig
from flamingo.evaluation_run import Parts, evaluate_run
from flamingo.launching import join_processes
from flamingo.runs import Run, load_run
from flamingo.structured import build, plain

logger = logging.getLogger(__name__)


def main(config: EvaluateConfig) -> None:
    """Evaluate, or end this process with a message."""
    overrides = HydraConfig.get().overrides.task
    join_processes()
    processes = launched()
    try:
        with speaking(processes):
            with processes.main_first():
                run = load_run(config.run)
            with naming_data_root(config.data_root, overrides):
                told = (plan if config.plan_only else evaluate)(
                    run, config.step, overrides, processes
                )
    except OtherProcessEnded:
        ended = "error: another process ended, see above; what was predicted is kept"
        sys.exit(ended if processes.main else 1)
    except (ValueError, OSError) as error:
        if processes.main:
            raise  # told as every task's
        logger.debug("where it happened", exc_info=True)
        sys.exit(f"error: process {processes.index}: {error}")
    if processes.main:
        print(told)


@contextmanager
def naming_data_root(data_root: str, overrides: Sequence[str]) -> Iterator[None]:
    """Where files of ``benchmark=`` are not found, it is said which key says where they are."""
    try:
        yield
    except (ValueError, OSError) as error:
        chosen = any(override.startswith("benchmark=") for override in overrides)
        if not chosen or f"{Path(data_root)}{os.sep}" not in str(error):
            raise
        raise ValueError(
            f"{error}\nThe files of benchmark= are looked for below data_root={data_root}: name "
            "the folder of the data sets there (docs/evaluation.md lists the files)"
        ) from error


@contextmanager
def speaking(processes: Processes) -> Iterator[None]:
    """Progress bars and warnings of the main process alone."""
    if processes.main:
        yield
        return
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


def plan(
    run: Run,
    step: int | None = None,
    overrides: Sequence[str] = (),
    processes: Processes = ALONE,
) -> str:
    """Write the plans of a run's evaluation; returns how many there are and where.

    Raises ``ValueError`` where other plans stand in their place.
    """
    parts = Parts(with_overrides(run.config, overrides), run.checkpoint(step), processes)
    benchmarks = parts.benchmarks
    planned = run.directory.planned
    count = write_all_plans(benchmarks, planned, replace=False) if processes.main else 0
    return f"{count} plans in {planned}"


def evaluate(
    run: Run,
    step: int | None = None,
    overrides: Sequence[str] = (),
    processes: Processes = ALONE,
) -> str:
    """Do what is left to do of a run's evaluation; returns the table and the report's place.

    All ``processes`` do it together and return when it is done; the main one alone writes results
    and report. Raises ``ValueError`` if another launch is evaluating the run.
    """
    with processes.main_first():
        config = with_overrides(run.config, overrides)
        parts = Parts(config, run.checkpoint(step), processes)
        done = archive.find(run.path, parts.settings)
    if done == run.path:
        return summary(run.results, run, f"Everything is evaluated already.\n{again(run)}")
    processes.wait()  # all have looked; nothing is moved before
    with run.directory.locked_for_evaluation() if processes.main else nullcontext():
        results = evaluate_run(run, parts, commands(run, overrides))
        if results is not None and done is not None:
            archive.forget_remade(run.path, done)
    if results is None:
        return ""
    said = [f"{results['timing']['new_predictions']} new predictions."]
    said += [f"For the server: {path}" for path in results["submissions"]]
    return summary(results, run, "\n".join(said))


def again(run: Run) -> str:
    """How a finished evaluation is done anew."""
    file = run.directory.results
    return f"Data and metrics are not looked at again: remove {file} to have it evaluated anew."


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """``config`` with what the command line says about ``evaluation``.

    First the files that ``protocol=`` and ``benchmark=`` name, then what is said itself. Raises
    ``ValueError`` as every configuration does.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    given: dict[str, Any] = {override.key_or_group: override.value() for override in parsed}
    values = OmegaConf.create(plain(config))
    for group in GROUPS:
        chosen = given.get(group) or []
        for name in [chosen] if isinstance(chosen, str) else chosen:
            values.merge_with(preset(group, name, str(given.get("data_root", "data"))))
    update_evaluation(values, overrides)
    return build(values, RunConfig)


GROUPS = ("protocol", "benchmark")


def preset(group: str, name: str, data_root: str) -> dict[str, Any]:
    """What a file of ``conf/<group>/`` says about ``evaluation``."""
    path = CONF / group / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"{group}: expected a file of {path.parent}, got {name!r}")
    read = OmegaConf.merge({"data_root": data_root}, OmegaConf.load(path))
    values = OmegaConf.to_container(read, resolve=True)
    assert isinstance(values, dict)
    return {"evaluation": values["evaluation"]}


def commands(run: Run, overrides: Sequence[str]) -> list[str]:
    """What was typed to train and evaluate."""
    known = run.directory.provenance.exists()
    launches = run.provenance.get("launches", []) if known else []
    lines = []
    if launches:
        script, *arguments = launches[0]["command"]
        if overrides_of_job := launches[0].get("overrides"):
            # A job of submitit's has the command of submitit's own script.
            script = "convert.py" if run.directory.conversion.exists() else "train.py"
            arguments = as_typed(overrides_of_job, RunConfig)
        lines.append(shlex.join(["python", f"experiments/{Path(script).name}", *arguments]))
    kept = ("evaluation.", "step=", "data_root=", *(f"{group}=" for group in GROUPS))
    changes = [override for override in overrides if override.startswith(kept)]
    return [*lines, shlex.join(["python", "experiments/evaluate.py", f"run={run.path}", *changes])]


def summary(results: dict[str, Any], run: Run, what: str) -> str:
    """What is printed at the end of ``run``'s evaluation."""
    page = run.directory.report / "index.html"
    left = [not_run(own) for own in results["left_out"]]
    lines = [table(results), ""]
    lines += [f"Not run: {', '.join(left)}", ""] if left else []
    part = run.part_of_training(results["step"])
    lines += [f"Evaluated after {part}.", ""] if part else []
    return "\n".join([*lines, what, f"100 times each score ± standard error. Report: {page}"])


def not_run(own: Mapping[str, Any]) -> str:
    """What of ``left_out`` is told."""
    kind = "" if own["condition"] == "real" else f", {own['condition']}"
    return f"{own['benchmark']} at {own['shots']} shots{kind}: {own['reason']}"


if __name__ == "__main__":
    paths = ["data_root", "evaluation.folder.path", "evaluation.demonstrations.plans"]
    # The run's own settings complete what is given under evaluation.*, so that may have gaps.
    entry_point(
        main,
        EvaluateConfig,
        "evaluate",
        verbatim=["run", *paths],
        unbuilt=["evaluation"],
        interrupted="What was predicted is kept, and the same command continues.",
    )
