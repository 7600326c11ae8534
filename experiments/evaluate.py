"""Evaluate a trained run in context: benchmarks, shot counts, controls, baselines, and the report.

    python experiments/evaluate.py run=runs/quickstart/seed=0
    python experiments/evaluate.py run=... evaluation.folder.path=photos/     # classes by folder
    python experiments/evaluate.py run=... evaluation.shots=[0,4] evaluation.batch_size=32

What is given under evaluation.* changes the run's own evaluation settings (its config.yaml); the
defaults listed below hold only where neither says anything. Predictions are kept as they come, so
the same command continues after an interruption and does nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Sequence
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
from flamingo.evaluation.baselines import PooledFeatures
from flamingo.evaluation.benchmarks import build_benchmarks
from flamingo.evaluation.loading import (
    compute_dtype,
    evaluation_device,
    load_model,
    load_tokenizer,
)
from flamingo.evaluation.report import RunFacts, facts_of, write_report
from flamingo.evaluation.results import collect, table
from flamingo.evaluation.runner import Loaded, images, run_benchmarks
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
    try:
        print(evaluate(load_run(config.run), config.step, overrides))
    except (ValueError, OSError) as error:
        logger.debug("where it happened", exc_info=True)  # hydra.verbose=true
        sys.exit(f"error: {error}")


def evaluate(run: Run, step: int | None = None, overrides: Sequence[str] = ()) -> str:
    """Do what is left to do of a run's evaluation; returns the table and the report's place."""
    config = with_overrides(run.config, overrides)
    checkpoint = run.checkpoint(step)
    device = evaluation_device()
    settings = {
        "evaluation": plain(config)["evaluation"],
        "model": f"step_{checkpoint.step}-{digest(checkpoint.path)}",
        "precision": str(compute_dtype(config, device)).removeprefix("torch."),
    }
    page = run.directory.report / "index.html"
    if page.exists() and run.directory.results.exists():
        results = run.results
        if results["settings"] == settings:
            return summary(results, page, "Everything is evaluated already.")
    results = _evaluate(run, config, checkpoint, settings, device, overrides)
    return summary(results, page, f"{results['timing']['new_predictions']} new predictions.")


def _evaluate(
    run: Run,
    config: RunConfig,
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    device: torch.device,
    overrides: Sequence[str],
) -> dict[str, Any]:
    """Predict what is missing; write ``results.json`` and the report."""
    tokenizer = load_tokenizer(checkpoint.path)
    benchmarks = build_benchmarks(config, tokenizer, assets.easy_vqa_folder, assets.twemoji_folder)

    @cache
    def encoder() -> VisionEncoder:
        return load_vision_encoder(config.vision).to(device)

    def load(shown: Sequence[ImageRef]) -> Loaded:
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
    )
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


def summary(results: dict[str, Any], page: Path, what: str) -> str:
    """What is printed at the end."""
    left = [f"{o['benchmark']} at {o['shots']} shots: {o['reason']}" for o in results["left_out"]]
    lines = [table(results), ""]
    lines += [f"Not run: {', '.join(left)}", ""] if left else []
    return "\n".join([*lines, what, f"100 times each score ± standard error. Report: {page}"])


if __name__ == "__main__":
    entry_point(main, EvaluateConfig, "evaluate", verbatim=["run", "evaluation.folder.path"])
