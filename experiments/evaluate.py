"""Evaluate a trained run in context: benchmarks, shot counts, controls, baselines, and the report.

    python experiments/evaluate.py run=runs/quickstart/seed=0
    python experiments/evaluate.py run=... evaluation.folder.path=photos/     # classes by folder
    python experiments/evaluate.py run=... evaluation.shots=[0,4] evaluation.batch_size=32
    python experiments/evaluate.py run=... benchmark=[vqav2,coco] data_root=/data
    python experiments/evaluate.py run=... benchmark=vizwiz protocol=open_flamingo

What is given under evaluation.* changes the run's own evaluation settings (its config.yaml); the
defaults listed below hold only where neither says anything.

benchmark= ADDS benchmarks to the run's own, which evaluation.<benchmark>=null switches off. One or
several of: binding, clevr, coco, easy_vqa, flickr30k, gqa, hateful_memes, imagenet, ok_vqa, pope,
textvqa, vizwiz, vl_icl, vqav2. They are files of conf/benchmark/, which say where below data_root
(default: data) the data are looked for. protocol=open_flamingo evaluates as OpenFlamingo did. What
evaluation.* says comes last.

Which demonstrations each query gets is written to the run's plans/. plan_only=true does that and
ends; evaluation.demonstrations.plans=<folder> evaluates with such plans, as written or edited. For
test splits without annotations a file for the benchmark's server is written to submissions/.

Predictions are kept as they come, so the same command continues after an interruption and does
nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flamingo.backbones import assets
from flamingo.backbones.language import fingerprint as language_fingerprint
from flamingo.backbones.language import load_language_model
from flamingo.backbones.vision import VisionEncoder, load_vision_encoder
from flamingo.build import build_media_loader, feature_cache
from flamingo.composition import CONF, entry_point
from flamingo.config import RunConfig, config_to_yaml
from flamingo.data.features import EncodingLoader
from flamingo.evaluation.baselines import PooledFeatures
from flamingo.evaluation.benchmarks import Benchmark, build_benchmarks
from flamingo.evaluation.loading import (
    compute_dtype,
    evaluation_device,
    load_model,
    load_tokenizer,
)
from flamingo.evaluation.outputs import write_all_plans, write_submissions
from flamingo.evaluation.report import RunFacts, facts_of, write_report
from flamingo.evaluation.results import collect, table
from flamingo.evaluation.retriever import ImageSource, Retriever, TextSource
from flamingo.evaluation.runner import Loaded, images, run_benchmarks
from flamingo.evaluation_config import EvaluationConfig
from flamingo.files import write_atomically
from flamingo.model.configuration import FlamingoConfig
from flamingo.model.persistence import check_fingerprint
from flamingo.runs import Run, load_run, plain
from flamingo.structured import build
from flamingo.training.checkpoint import Checkpoint
from flamingo.training.tracking import read_metrics
from flamingo.types import ImageRef, MediaLoader


@dataclass(kw_only=True)
class EvaluateConfig:
    """Which run is evaluated, and how."""

    run: str = MISSING
    """The run's directory."""
    step: int | None = None
    """Of the checkpoint; default: the newest."""
    data_root: str = "data"
    """Where the files of ``benchmark=`` look for the data sets."""
    plan_only: bool = False
    """Write the plans of demonstrations and end."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def main(config: EvaluateConfig) -> None:
    """Evaluate. Raises ``ValueError`` or ``OSError`` for what cannot be evaluated."""
    run, overrides = load_run(config.run), HydraConfig.get().overrides.task
    print((plan if config.plan_only else evaluate)(run, config.step, overrides))


def plan(run: Run, step: int | None = None, overrides: Sequence[str] = ()) -> str:
    """Write the plans of a run's evaluation; returns how many there are and where."""
    parts = Parts(with_overrides(run.config, overrides), run.checkpoint(step), evaluation_device())
    count = write_all_plans(parts.benchmarks(), run.directory.plans)
    return f"{count} plans in {run.directory.plans}"


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
    if config.evaluation.demonstrations.plans is not None:  # a user edits them under one name
        settings["plans"] = plans_digest(Path(config.evaluation.demonstrations.plans))
    page = run.directory.report / "index.html"
    if page.exists() and run.directory.results.exists():
        results = run.results
        if results["settings"] == settings:
            return summary(results, page, "Everything is evaluated already.")
    results = _evaluate(run, Parts(config, checkpoint, device), settings, overrides)
    said = [f"{results['timing']['new_predictions']} new predictions."]
    said += [f"For the server: {path}" for path in results["submissions"]]
    return summary(results, page, "\n".join(said))


@dataclass(frozen=True, eq=False)
class Parts:
    """What an evaluation is made of; what has to be loaded is loaded when it is asked for."""

    config: RunConfig
    checkpoint: Checkpoint
    device: torch.device

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.checkpoint.path)

    @cached_property
    def encoder(self) -> VisionEncoder:
        return load_vision_encoder(self.config.vision).to(self.device)

    def benchmarks(self) -> list[Benchmark]:
        return build_benchmarks(
            self.config,
            self.tokenizer,
            assets.easy_vqa_folder,
            assets.twemoji_folder,
            self.retriever(),
        )

    def model(self, shown: Sequence[ImageRef]) -> Loaded:
        """The trained model, and a loader of the images that it is shown."""
        media = build_media_loader(self.config.data, self.encoder, shown)
        model = load_model(self.checkpoint.path, self.config, self.encoder, self.device)
        return Loaded(model, media, compute_dtype(self.config, self.device))

    def retriever(self) -> Retriever:
        """By the frozen backbones, as the checkpoint knows them; loads neither."""
        trained = FlamingoConfig.from_pretrained(self.checkpoint.path)
        dtype = compute_dtype(self.config, self.device)

        def load_features(shown: Sequence[ImageRef]) -> MediaLoader:
            check_fingerprint(
                "vision encoder", trained.vision_fingerprint, self.encoder.fingerprint
            )
            if not self.config.data.cache_features:
                return EncodingLoader(self.encoder)
            return build_media_loader(self.config.data, self.encoder, shown)

        def load_language() -> PreTrainedModel:
            model = load_language_model(self.config.language, dtype)
            own = language_fingerprint(model)
            check_fingerprint("language model", trained.language_fingerprint, own)
            return model.to(self.device)  # type: ignore[arg-type]

        demonstrations = self.config.evaluation.demonstrations
        return Retriever(
            similarity=demonstrations.similarity,
            question_weight=demonstrations.question_weight,
            folder=feature_cache(self.config.data) / "retrieval",
            images=ImageSource(str(trained.vision_fingerprint), load_features),
            texts=TextSource(
                f"{trained.language_fingerprint}, {dtype}", self.tokenizer, load_language
            ),
        )


def _evaluate(
    run: Run, parts: Parts, settings: dict[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """Predict what is missing; write ``results.json`` and the report."""
    config, checkpoint, tokenizer = parts.config, parts.checkpoint, parts.tokenizer
    benchmarks = parts.benchmarks()
    write_all_plans(benchmarks, run.directory.plans)
    outcome = run_benchmarks(
        benchmarks,
        config.evaluation,
        tokenizer,
        run.directory.predictions,
        model_id=settings["model"],
        precision=settings["precision"],
        load=parts.model,
    )
    submissions = write_submissions(outcome, run.directory.submissions)
    closed = [e for cell, _ in outcome.cells for e in cell.episodes if e.candidates]
    pooled = None
    if closed and config.data.cache_features:
        pooled = PooledFeatures(build_media_loader(config.data, parts.encoder, images(closed)))
    results = collect(
        benchmarks,
        outcome,
        pooled,
        settings,
        step=checkpoint.step,
        seed=config.evaluation.seed,
    )
    results["submissions"] = [str(path) for path in submissions]
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
    for override in parsed:
        if override.key_or_group.startswith("evaluation."):
            OmegaConf.update(values, override.key_or_group, override.value())
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


def digest(checkpoint: Path) -> str:
    """12 hex digits of the trained weights and of the configuration beside them."""
    sha = hashlib.sha256()
    for name in ("model.safetensors", "config.json"):
        with (checkpoint / name).open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:12]


def plans_digest(folder: Path) -> str:
    """12 hex digits of the plans of a folder."""
    sha = hashlib.sha256()
    for file in sorted(folder.glob("*/seed=*.jsonl")):
        sha.update(f"{file.relative_to(folder)} {file.stat().st_size} ".encode())
        sha.update(file.read_bytes())
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
    kept = ("evaluation.", "data_root=", *(f"{group}=" for group in GROUPS))
    changes = [override for override in overrides if override.startswith(kept)]
    return [*lines, shlex.join(["python", "experiments/evaluate.py", f"run={run.path}", *changes])]


def summary(results: dict[str, Any], page: Path, what: str) -> str:
    """What is printed at the end."""
    left = [f"{o['benchmark']} at {o['shots']} shots: {o['reason']}" for o in results["left_out"]]
    lines = [table(results), ""]
    lines += [f"Not run: {', '.join(left)}", ""] if left else []
    return "\n".join([*lines, what, f"100 times each score ± standard error. Report: {page}"])


if __name__ == "__main__":
    paths = ["data_root", "evaluation.folder.path", "evaluation.demonstrations.plans"]
    # The run's own settings complete what is given under evaluation.*, so that may have gaps.
    entry_point(main, EvaluateConfig, "evaluate", verbatim=["run", *paths], unbuilt=["evaluation"])
