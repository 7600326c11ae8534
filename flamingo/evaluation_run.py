"""The evaluation of a run: from its checkpoint to predictions, ``results.json`` and the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flamingo.backbones import assets
from flamingo.backbones.language import fingerprint as language_fingerprint
from flamingo.backbones.language import load_language_model
from flamingo.backbones.precision import available_device
from flamingo.backbones.vision import VisionEncoder, load_vision_encoder
from flamingo.build import build_media_loader, feature_cache
from flamingo.choices import Condition
from flamingo.config import RunConfig, config_to_yaml
from flamingo.data.features import EncodingLoader
from flamingo.evaluation import archive
from flamingo.evaluation.baselines import PooledFeatures
from flamingo.evaluation.benchmarks import Benchmark, build_benchmarks
from flamingo.evaluation.cells import Cell, images
from flamingo.evaluation.loading import (
    compute_dtype,
    load_model,
    load_tokenizer,
)
from flamingo.evaluation.outputs import write_all_plans, write_cells, write_submissions
from flamingo.evaluation.processes import ALONE, Processes
from flamingo.evaluation.report import RunFacts, facts_of, write_report
from flamingo.evaluation.results import collect
from flamingo.evaluation.retriever import ImageSource, Retriever, TextSource
from flamingo.evaluation.runner import Loaded, Outcome, run_benchmarks
from flamingo.evaluation_config import EvaluationConfig, recorded
from flamingo.files import write_atomically
from flamingo.model.configuration import FlamingoConfig
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.persistence import check_fingerprint
from flamingo.runs import Run
from flamingo.training.checkpoint import Checkpoint
from flamingo.training.tracking import read_metrics
from flamingo.types import ImageRef, MediaLoader


@dataclass(frozen=True, eq=False)
class Parts:
    """What an evaluation is made of; what has to be loaded is loaded when it is asked for.

    Of several ``processes`` the main one goes first wherever something is fetched or cached.
    """

    config: RunConfig
    checkpoint: Checkpoint
    processes: Processes = ALONE

    @cached_property
    def device(self) -> torch.device:
        return available_device()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.checkpoint.path)

    @cached_property
    def encoder(self) -> VisionEncoder:
        return load_vision_encoder(self.config.vision).to(self.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.config, self.device)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that results depend on: not the size of batches."""
        settings = {
            "evaluation": recorded(self.config.evaluation),
            "model": f"step_{self.checkpoint.step}-{digest(self.checkpoint.path)}",
            "precision": str(self.dtype).removeprefix("torch."),
        }
        if self.config.evaluation.demonstrations.plans is not None:  # edited under one name
            settings["plans"] = plans_digest(Path(self.config.evaluation.demonstrations.plans))
        return settings

    @cached_property
    def benchmarks(self) -> list[Benchmark]:
        with self.processes.main_first():  # it fetches data sets
            built = build_benchmarks(
                self.config,
                self.tokenizer,
                assets.easy_vqa_folder,
                assets.twemoji_folder,
                self._retriever(),
            )
            if not built:
                raise ValueError(
                    "evaluation: expected at least one benchmark, got none: name one, such as "
                    "benchmark=easy_vqa"
                )
            for benchmark in built:
                for seed in benchmark.seeds:
                    benchmark.plans(seed)  # it fills the cache of retrieval features
        return built

    def load(self, shown: Sequence[ImageRef]) -> Loaded:
        """The trained model, and a loader of the images that it is shown."""
        with self.processes.main_first():  # it fills the cache of features
            media = build_media_loader(self.config.data, self.encoder, shown)
        model = load_model(self.checkpoint.path, self.config, self.encoder, self.device)
        return Loaded(model, media, self.dtype)

    def _retriever(self) -> Retriever:
        """By the frozen backbones, as the checkpoint knows them; loads neither."""
        trained = FlamingoConfig.from_pretrained(self.checkpoint.path)

        def load_features(shown: Sequence[ImageRef]) -> MediaLoader:
            check_fingerprint(
                "vision encoder", trained.vision_fingerprint, self.encoder.fingerprint
            )
            if not self.config.data.cache_features:
                return EncodingLoader(self.encoder)
            return build_media_loader(self.config.data, self.encoder, shown)

        def load_language() -> PreTrainedModel:
            model = load_language_model(self.config.language, self.dtype)
            own = language_fingerprint(model)
            check_fingerprint("language model", trained.language_fingerprint, own)
            return model.to(self.device)  # type: ignore[arg-type]

        demonstrations = self.config.evaluation.demonstrations
        language = f"{trained.language_fingerprint}, {self.dtype}"
        return Retriever(
            similarity=demonstrations.similarity,
            question_weight=demonstrations.question_weight,
            folder=feature_cache(self.config.data) / "retrieval",
            images=ImageSource(str(trained.vision_fingerprint), load_features),
            texts=TextSource(language, self.tokenizer, load_language),
            pooling=demonstrations.pooling,
        )


def evaluate_run(run: Run, parts: Parts, commands: Sequence[str]) -> dict[str, Any] | None:
    """Predict what is missing; the main process writes all else.

    Returns the content of ``results.json`` (None to the other processes). ``commands`` reproduce
    it. What an evaluation of other settings left is kept, in ``evaluations/``.

    Raises ``ValueError`` for plans in the run's ``plans/``, which would be kept as what it used.
    """
    processes = parts.processes
    plans = parts.config.evaluation.demonstrations.plans
    if plans is not None and Path(plans).resolve().is_relative_to(run.directory.plans.resolve()):
        raise ValueError(
            f"evaluation.demonstrations.plans: expected another folder than {plans}, which records "
            f"what the newest results used: copy it to {run.directory.planned}"
        )
    benchmarks = parts.benchmarks
    outcome = run_benchmarks(
        benchmarks,
        parts.config.evaluation,
        parts.tokenizer,
        run.directory.predictions,
        model_id=parts.settings["model"],
        precision=parts.settings["precision"],
        load=parts.load,
        processes=processes,
    )
    if not processes.main:
        return None
    archive.keep_earlier(run.path, parts.settings)
    write_cells(outcome, run.directory.cells)
    write_all_plans(benchmarks, run.directory.plans)
    submissions = write_submissions(outcome, run.directory.submissions)
    results = collect(
        benchmarks,
        outcome,
        _pooled(parts, outcome),
        parts.settings,
        step=parts.checkpoint.step,
        seed=parts.config.evaluation.seed,
    )
    results["submissions"] = [str(path) for path in submissions]
    provenance = run.provenance if run.directory.provenance.exists() else {}
    facts = RunFacts(
        name=parts.config.name,
        step=parts.checkpoint.step,
        metrics=read_metrics(run.directory.metrics),
        config=config_to_yaml(parts.config),
        facts=facts_of(parts.config, provenance, results),
        commands=commands,
    )
    write_report(run.directory.report, results, outcome, facts)
    # Last: these results say that everything is done.
    write_atomically(run.directory.results, json.dumps(results, indent=1) + "\n")
    return results


@dataclass(frozen=True)
class Measurement:
    """What :func:`measure` found."""

    results: dict[str, Any]
    """As ``results.json`` has them."""
    outcome: Outcome
    """Every episode with its prediction."""

    def scores(
        self, benchmark: str, shots: int, condition: Condition = Condition.real
    ) -> pd.DataFrame:
        """By query: ``score``, a mean over the draws of its demonstrations, and its ``cluster``.

        Raises ``ValueError`` if nothing of this kind was measured.
        """
        asked, cells = (benchmark, shots, condition), self.outcome.cells
        found = [own for cell, own in cells if _kind(cell) == asked]
        if not found:
            known = sorted({(*_kind(cell)[:2], cell.condition.value) for cell, _ in cells})
            raise ValueError(
                f"benchmark, shots, condition: expected one of {known}, got "
                f"{(benchmark, shots, condition.value)}"
            )
        rows = [(p.query, p.score, p.cluster) for own in found for p in own]
        frame = pd.DataFrame(rows, columns=["query", "score", "cluster"])
        return frame.groupby("query").agg({"score": "mean", "cluster": "first"})


def _kind(cell: Cell) -> tuple[str, int, Condition]:
    return cell.benchmark.name, cell.shots, cell.condition


def measure(
    run: Run,
    evaluation: EvaluationConfig,
    folder: Path,
    *,
    step: int | None = None,
    change: Callable[[FlamingoForConditionalGeneration], None] | None = None,
    changed: str = "",
) -> Measurement:
    """Evaluate a run in another way, for a look in a notebook; nothing of the run is written.

    Predictions go to ``folder``; those that it has are not made again. ``change`` alters the model
    that was loaded for this (an ablation), ``changed`` names the alteration: predictions of another
    name are not taken for its. ``step``: of the checkpoint, default the newest.

    Raises ``ValueError`` for a change without a name, and as :func:`evaluate_run`.
    """
    if change is not None and not changed:
        raise ValueError("changed: expected a name for the change, got none")
    config = replace(run.config, evaluation=evaluation)
    parts = Parts(config, run.checkpoint(step))

    def load(shown: Sequence[ImageRef]) -> Loaded:
        loaded = parts.load(shown)
        if change is not None:
            with torch.no_grad():
                change(loaded.model)
        return loaded

    outcome = run_benchmarks(
        parts.benchmarks,
        evaluation,
        parts.tokenizer,
        folder,
        model_id=parts.settings["model"] + (f"-{changed}" if changed else ""),
        precision=parts.settings["precision"],
        load=load,
    )
    results = collect(
        parts.benchmarks,
        outcome,
        _pooled(parts, outcome),
        parts.settings,
        step=parts.checkpoint.step,
        seed=evaluation.seed,
    )
    return Measurement(results, outcome)


def _pooled(parts: Parts, outcome: Outcome) -> PooledFeatures | None:
    """Frozen features for the ceiling of closed questions, where they are cached."""
    real = (cell for cell, _ in outcome.cells if cell.condition is Condition.real)
    closed = [episode for cell in real for episode in cell.episodes if episode.candidates]
    if not closed or not parts.config.data.cache_features:
        return None
    return PooledFeatures(build_media_loader(parts.config.data, parts.encoder, images(closed)))


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
