"""Evaluate a trained run in context: benchmarks, shot counts, controls, baselines, and the report.

    python experiments/evaluate.py run=runs/quickstart/seed=0
    python experiments/evaluate.py run=... evaluation.folder.path=photos/     # classes by folder
    python experiments/evaluate.py run=... evaluation.shots=[0,4] evaluation.batch_size=32
    accelerate launch --num_processes 8 experiments/evaluate.py run=...   # on 8 GPUs
    torchrun --nproc_per_node 4 experiments/evaluate.py run=...           # on a CPU of many cores

What is given under evaluation.* changes the run's own evaluation settings (its config.yaml); the
defaults listed below hold only where neither says anything. Predictions are kept as they come, so
the same command continues after an interruption, on any number of processes, and does nothing
twice. results.json and report/ are of the newest settings; those of other settings before them
are in evaluations/<date>/ beside them, and asking for these again says so at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, OmegaConf

from flamingo.backbones import assets
from flamingo.backbones.vision import VisionEncoder, load_vision_encoder
from flamingo.build import build_media_loader
from flamingo.composition import entry_point
from flamingo.config import RunConfig, config_to_yaml
from flamingo.evaluation import archive
from flamingo.evaluation.baselines import PooledFeatures
from flamingo.evaluation.benchmarks import build_benchmarks
from flamingo.evaluation.cells import images
from flamingo.evaluation.loading import (
    compute_dtype,
    evaluation_device,
    load_model,
    load_tokenizer,
)
from flamingo.evaluation.processes import ALONE, OtherProcessEnded, Processes, launched
from flamingo.evaluation.report import RunFacts, facts_of, write_report
from flamingo.evaluation.results import collect, table
from flamingo.evaluation.runner import Loaded, run_benchmarks
from flamingo.evaluation_config import EvaluationConfig
from flamingo.files import write_atomically
from flamingo.runs import Run, load_run, plain
from flamingo.structured import build
from flamingo.training.checkpoint import Checkpoint
from flamingo.training.tracking import read_metrics
from flamingo.types import ImageRef

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class EvaluateConfig:
    """Which run is evaluated, and how."""

    run: str = MISSING
    """The run's directory."""
    step: int | None = None
    """Of the checkpoint; default: the newest."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def main(config: EvaluateConfig) -> None:
    """Evaluate, or end the process with a message."""
    overrides = HydraConfig.get().overrides.task
    processes = launched()
    try:
        with speaking(processes):
            with processes.main_first():
                run = load_run(config.run)
            told = evaluate(run, config.step, overrides, processes)
    except OtherProcessEnded:
        ended = "error: another process ended, see above; what was predicted is kept"
        sys.exit(ended if processes.main else 1)
    except (ValueError, OSError) as error:
        logger.debug("where it happened", exc_info=True)  # hydra.verbose=true
        who = "" if processes.main else f"process {processes.index}: "
        sys.exit(f"error: {who}{error}")
    if processes.main:
        print(told)


@contextmanager
def speaking(processes: Processes) -> Iterator[None]:
    """Progress bars and warnings of the main process alone."""
    if processes.main:
        yield
        return
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


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
        checkpoint = run.checkpoint(step)
        device = evaluation_device()
        settings = settings_of(config, checkpoint, device)
        done = archive.find(run.path, settings)
    if done is not None:
        results = json.loads((done / "results.json").read_text())
        return summary(results, done, "Everything is evaluated already.")
    with run.directory.locked_for_evaluation() if processes.main else nullcontext():
        results = _evaluate(run, config, checkpoint, settings, device, overrides, processes)
    new = results["timing"]["new_predictions"] if results else 0
    return summary(results, run.path, f"{new} new predictions.") if results else ""


def settings_of(config: RunConfig, checkpoint: Checkpoint, device: torch.device) -> dict[str, Any]:
    """All that results depend on: not the size of batches."""
    evaluation = {k: v for k, v in plain(config)["evaluation"].items() if k != "batch_size"}
    return {
        "evaluation": evaluation,
        "model": f"step_{checkpoint.step}-{digest(checkpoint.path)}",
        "precision": str(compute_dtype(config, device)).removeprefix("torch."),
    }


def _evaluate(
    run: Run,
    config: RunConfig,
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    device: torch.device,
    overrides: Sequence[str],
    processes: Processes,
) -> dict[str, Any] | None:
    """Predict what is missing; the main process writes ``results.json`` and the report."""
    with processes.main_first():  # it fetches data sets
        tokenizer = load_tokenizer(checkpoint.path)
        benchmarks = build_benchmarks(
            config, tokenizer, assets.easy_vqa_folder, assets.twemoji_folder
        )

    @cache
    def encoder() -> VisionEncoder:
        return load_vision_encoder(config.vision).to(device)

    def load(shown: Sequence[ImageRef]) -> Loaded:
        with processes.main_first():  # it fills the cache of features
            media = build_media_loader(config.data, encoder(), shown)
        model = load_model(checkpoint.path, config, encoder(), device)
        return Loaded(model, media, compute_dtype(config, device))

    outcome = run_benchmarks(
        benchmarks,
        config.evaluation,
        tokenizer,
        run.directory.predictions,
        model_id=settings["model"],
        precision=settings["precision"],
        load=load,
        processes=processes,
    )
    if not processes.main:
        return None
    closed = [e for cell, _ in outcome.cells for e in cell.episodes if e.candidates]
    pooled = None
    if closed and config.data.cache_features:
        pooled = PooledFeatures(build_media_loader(config.data, encoder(), images(closed)))
    results = collect(
        benchmarks,
        outcome,
        pooled,
        settings,
        step=checkpoint.step,
        seed=config.evaluation.seed,
    )
    report = RunFacts(
        name=config.name,
        step=checkpoint.step,
        metrics=read_metrics(run.directory.metrics),
        config=config_to_yaml(config),
        facts=facts_of(config, provenance(run), results),
        commands=commands(run, provenance(run), overrides),
    )
    archive.keep_earlier(run.path, settings)
    write_report(run.directory.report, results, outcome, report)
    # Last: these results say that everything is done.
    write_atomically(run.directory.results, json.dumps(results, indent=1) + "\n")
    return results


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """``config`` with what the command line says about ``evaluation``.

    Raises ``ValueError`` as every configuration does.
    """
    values = OmegaConf.create(plain(config))
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group.startswith("evaluation."):
            OmegaConf.update(values, override.key_or_group, override.value())
    return build(values, RunConfig)


def digest(checkpoint: Path) -> str:
    """12 hex digits of the trained weights and of the configuration beside them."""
    sha = hashlib.sha256()
    for name in ("model.safetensors", "config.json"):
        with (checkpoint / name).open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:12]


def provenance(run: Run) -> dict[str, Any]:
    """The run's provenance, empty if it has none."""
    return run.provenance if run.directory.provenance.exists() else {}


def commands(run: Run, circumstances: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """What was typed to train and evaluate."""
    launches = circumstances.get("launches", [])
    lines = []
    if launches:
        script, *arguments = launches[0]["command"]
        lines.append(shlex.join(["python", f"experiments/{Path(script).name}", *arguments]))
    changes = [override for override in overrides if override.startswith("evaluation.")]
    return [*lines, shlex.join(["python", "experiments/evaluate.py", f"run={run.path}", *changes])]


def summary(results: dict[str, Any], folder: Path, what: str) -> str:
    """What is printed at the end; ``folder`` has the results and the report."""
    page = folder / "report" / "index.html"
    left = [f"{o['benchmark']} at {o['shots']} shots: {o['reason']}" for o in results["left_out"]]
    lines = [table(results), ""]
    lines += [f"Not run: {', '.join(left)}", ""] if left else []
    return "\n".join([*lines, what, f"Accuracy in per cent ± standard error. Report: {page}"])


if __name__ == "__main__":
    entry_point(main, EvaluateConfig, "evaluate", verbatim=["run", "evaluation.folder.path"])
