"""A run's directory: whom it belongs to, where things are in it, and how to reopen it.

::

    <runs>/<name>/seed=<n>/
      config.yaml       resolved
      provenance.json   git state, packages, machine, backbone fingerprints; one entry a launch
      launch_<n>.diff   what was not committed then, if anything (n: its place in provenance.json)
      metrics.jsonl     checkpoints/step_<n>/
      predictions/<benchmark>/<condition>.jsonl   results.json   report/index.html
      cells.jsonl       which predictions results.json counts: a line a cell, with their keys
      plans/<benchmark>/seed=<n>.jsonl   planned/   submissions/<benchmark>_<shots>_shots.json
      conversion.json   of a published model: what went where
      evaluations/<date>/   all but predictions/ of earlier evaluations, under other settings
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flamingo.choices import Schedule
from flamingo.config import RunConfig, config_from_yaml, config_to_yaml
from flamingo.files import write_atomically
from flamingo.model.auto import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.provenance import circumstances, uncommitted_changes
from flamingo.training.checkpoint import Checkpoint, complete_checkpoints
from flamingo.training.tracking import read_metrics

MAY_CHANGE = (
    "runs",  # where the directory stands
    "data.workers",
    "data.feature_cache",
    "data.interleaved.validation",
    "data.mmc4.validation",
    "data.obelics.validation",
    "data.captions.validation",
    "data.clips.validation",
    "training.gradient_checkpointing",
    "training.sharding",
    "training.compile",
    "training.timeout_minutes",
    "training.log_every",
    "training.eval_every",
    "training.eval_batches",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "evaluation",
    "tracking",
)
"""Fields (with all below them) that may differ when a run continues: they change no weight."""

ONCE_FIXED = ("training.gradient_checkpointing",)
"""Of these, those that earlier versions held a run to. Their defaults stay part of its identity."""

ADDED_LATER = (
    "vision.grid",
    "language.train",
    "model.resampler.kind",
    "model.resampler.qk_norm",
    "model.cross_attention.ff_width",
    "model.cross_attention.ff_gated",
    "model.cross_attention.norm",
    "model.cross_attention.norm_eps",
    "model.cross_attention.qk_norm",
    "model.cross_attention.gate",
    "data.interleaved",
    "data.mmc4",
    "data.obelics",
    "data.captions",
    "data.coco_captions",
    "data.vqa",
    "data.clips",
    "training.micro_batch_tokens",
    "training.packing",
    "data.mixing",
)
"""Fields that earlier versions lacked. Their defaults are what those versions did, so a run has the
same identity with a default as without the field."""


# ---------------------------------------------------------------------------- configs


def plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested dicts of plain values, enums by name."""
    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"training": {"lr": 1}}`` as ``{"training.lr": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _may_change(name: str) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in MAY_CHANGE)


def differences(stored: RunConfig, given: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Fields that make ``given`` another run than ``stored``, with both values.

    ``training.steps`` may grow under a constant learning rate: the longer run's first steps are
    the shorter run's. Under any other schedule they are not.
    """
    old, new = flatten(plain(stored)), flatten(plain(given))
    differ = {
        name: (old.get(name, "absent"), new.get(name, "absent"))
        for name in sorted(old.keys() | new.keys())
        if old.get(name, "absent") != new.get(name, "absent") and not _may_change(name)
    }
    constant = given.training.schedule is Schedule.constant
    if constant and given.training.steps > stored.training.steps:
        differ.pop("training.steps", None)
    return differ


def config_hash(config: RunConfig) -> str:
    """Identifies a run: equal for configs that may continue one another."""
    values = {n: v for n, v in flatten(plain(config)).items() if not _may_change(n)}
    defaults = flatten(plain(RunConfig(name="any")))
    for name in ADDED_LATER:
        if name in values and values[name] == defaults[name]:  # a section that is set has fields
            del values[name]
    values |= {name: defaults[name] for name in ONCE_FIXED}
    if config.training.schedule is Schedule.constant:
        del values["training.steps"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def load_config(path: Path) -> RunConfig:
    """Read a ``config.yaml``. Raises ``ValueError`` naming the file if it does not fit."""
    if not path.is_file():
        seeds = sorted(found.parent.name for found in path.parent.glob(f"seed=*/{path.name}"))
        raise ValueError(
            f"{path}: expected a run's configuration, found no such file"
            + (f", but one in each of {seeds}: name one of them" if seeds else "")
        )
    try:
        return config_from_yaml(path.read_text())
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{path}: expected a configuration of this version: {error}") from error


# ---------------------------------------------------------------------------- the directory


@dataclass(frozen=True)
class RunDirectory:
    """The directory of a run that this configuration may train or evaluate in."""

    path: Path
    config: RunConfig

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    def predictions_of(self, benchmark: str, condition: str) -> Path:
        return self.predictions / benchmark / f"{condition}.jsonl"

    @property
    def plans(self) -> Path:
        return self.path / "plans"

    @property
    def planned(self) -> Path:
        """Plans that no evaluation has used yet."""
        return self.path / "planned"

    @property
    def submissions(self) -> Path:
        return self.path / "submissions"

    @property
    def cells(self) -> Path:
        return self.path / "cells.jsonl"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def conversion(self) -> Path:
        """Of a run that was converted from a published model: what went where."""
        return self.path / "conversion.json"

    @property
    def config_hash(self) -> str:
        return config_hash(self.config)

    @property
    def finished(self) -> bool:
        """Whether training is done: the checkpoint of the last step is there."""
        saved = complete_checkpoints(self.checkpoints)
        return bool(saved) and saved[-1].step >= self.config.training.steps

    @classmethod
    def open(cls, config: RunConfig, *, write: bool = True) -> RunDirectory:
        """The directory of ``config``, new or to be continued; ``write`` on the main process only.

        Raises ``ValueError``, with the fields that differ, if it belongs to another config.
        """
        directory = cls(config.directory, config)
        if directory.config_file.exists():
            stored = load_config(directory.config_file)
            if differ := differences(stored, config):
                raise ValueError(_explain(directory, differ))
        elif complete_checkpoints(directory.checkpoints):
            raise ValueError(
                f"{directory.path}: expected config.yaml beside the checkpoints, got none"
            )
        if write:
            write_atomically(directory.config_file, config_to_yaml(config))
        return directory

    def locked(self) -> AbstractContextManager[None]:
        """Hold the directory for one training process at a time (a killed one lets go).

        Raises ``ValueError`` if another one holds it.
        """
        return self._locked(
            ".lock",
            "expected no other process training here, but one is; "
            "wait for it, or give this run another name=",
        )

    def locked_for_evaluation(self) -> AbstractContextManager[None]:
        """Hold the directory for one evaluation at a time, as :meth:`locked` does for training."""
        return self._locked(
            ".evaluation.lock",
            "expected no other evaluation of this run, but one is going on; wait for it (what it "
            "predicts need not be predicted again), or end it",
        )

    @contextmanager
    def _locked(self, name: str, refusal: str) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{self.path}: {refusal}") from None
        try:
            yield
        finally:
            lock.release()

    def record_launch(self, backbones: dict[str, str | None], **details: Any) -> None:
        """Append this process's circumstances to ``provenance.json``, and what is not committed
        in the source tree to a file beside it."""
        launches = []
        if self.provenance.exists():
            launches = json.loads(self.provenance.read_text())["launches"]
        if changes := uncommitted_changes():
            write_atomically(self.path / f"launch_{len(launches)}.diff", changes)
        launches.append({**circumstances(), **details, "backbones": backbones})
        write_atomically(self.provenance, json.dumps({"launches": launches}, indent=1) + "\n")


def _explain(directory: RunDirectory, differ: dict[str, tuple[Any, Any]]) -> str:
    lines = [f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in differ.items()]
    advice = "give this run another name= (or seed=), or the values it was started with"
    if set(differ) == {"training.steps"}:
        advice = (
            "the learning rate of every step depends on it, so start a new run under another "
            "name=; only runs with training.schedule=constant can be made longer"
        )
    if not (directory.metrics.exists() or directory.checkpoints.exists()):
        advice += "; its training never took a step: the directory can be removed"
    return "\n".join(
        [f"{directory.path}: expected its own config, got another one:", *lines, advice]
    )


# ---------------------------------------------------------------------------- reopening


def load_run(path: str | Path) -> Run:
    """Open a run's directory, wherever it was moved or copied to.

    Raises ``ValueError`` if there is no run in ``path``.
    """
    return Run(RunDirectory(Path(path), load_config(Path(path) / "config.yaml")))


@dataclass(frozen=True)
class Run:
    """A run as found on disk, read again at every access (it may be going on)."""

    directory: RunDirectory

    @property
    def path(self) -> Path:
        return self.directory.path

    @property
    def config(self) -> RunConfig:
        return self.directory.config

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a logged step, indexed by step; empty cells where a number was not logged."""
        frame = pd.DataFrame(read_metrics(self.directory.metrics))
        return frame.set_index("step") if len(frame) else frame

    @property
    def checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return [c.step for c in complete_checkpoints(self.directory.checkpoints)]

    @property
    def provenance(self) -> dict[str, Any]:
        return json.loads(self.directory.provenance.read_text())

    @property
    def results(self) -> dict[str, Any]:
        """``results.json``. Raises ``ValueError`` before the run is evaluated."""
        if not self.directory.results.exists():
            raise ValueError(
                f"{self.directory.results}: expected the results of an evaluation, found none; "
                f"run experiments/evaluate.py first"
            )
        return json.loads(self.directory.results.read_text())

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Which predictions ``results.json`` counts: ``cells.jsonl``, in its order.

        Of each benchmark, condition, shot count and seed of demonstrations the ``keys`` of the
        predictions, in the order of the queries. Raises ``ValueError`` if there is none.
        """
        if not self.directory.cells.exists():
            raise ValueError(
                f"{self.directory.cells}: expected the keys of the predictions that results.json "
                "counts, found no such file (an earlier version wrote none): evaluate the run again"
            )
        return read_metrics(self.directory.cells)

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of ``step``, or the newest. Raises ``ValueError`` if there is none."""
        saved = {c.step: c for c in complete_checkpoints(self.directory.checkpoints)}
        if not saved or (step is not None and step not in saved):
            raise ValueError(
                f"{self.directory.checkpoints}: expected a checkpoint of step "
                f"{'any' if step is None else step}, got {sorted(saved) or 'none'}"
            )
        return saved[max(saved) if step is None else step]

    def model(
        self, step: int | None = None
    ) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
        """The model of a checkpoint (default: the newest) and its processor, ready to use."""
        folder = self.checkpoint(step).path
        model = FlamingoForConditionalGeneration.from_pretrained(folder)
        return model, FlamingoProcessor.from_pretrained(folder)

    def predictions(
        self,
        benchmark: str | None = None,
        condition: str | None = None,
        *,
        counted: bool = False,
    ) -> pd.DataFrame:
        """All predictions, or those of one benchmark or condition, which are columns of it.

        ``counted``: only those that ``results.json`` counts, as often as it does, with the ``seed``
        of their draw of demonstrations as a further column. Raises ``ValueError`` then if it is not
        known which these are, or if one is missing.
        """
        if counted:
            return pd.DataFrame(self._counted(benchmark, condition))
        rows: list[dict[str, Any]] = []
        for file in sorted(self.directory.predictions.rglob("*.jsonl")):
            name = file.parent.relative_to(self.directory.predictions).as_posix()
            if benchmark in (None, name) and condition in (None, file.stem):
                labels = {"benchmark": name, "condition": file.stem}
                rows += [{**labels, **row} for row in read_metrics(file)]
        return pd.DataFrame(rows)

    def _counted(self, benchmark: str | None, condition: str | None) -> Iterator[dict[str, Any]]:
        files: dict[Path, dict[str, dict[str, Any]]] = {}
        for cell in self.cells:
            labels = {name: cell[name] for name in ("benchmark", "condition", "seed")}
            if benchmark in (None, cell["benchmark"]) and condition in (None, cell["condition"]):
                file = self.directory.predictions_of(cell["benchmark"], cell["condition"])
                if file not in files:
                    files[file] = {row["key"]: row for row in read_metrics(file)}
                yield from ({**labels, **row} for row in of_keys(files[file], cell["keys"], file))


Entry = TypeVar("Entry")


def of_keys(by_key: Mapping[str, Entry], keys: Sequence[str], file: Path) -> list[Entry]:
    """The predictions of ``keys``, in their order, among those that ``file`` holds.

    Raises ``ValueError`` naming the file and the first key that it lacks.
    """
    if lacking := [key for key in keys if key not in by_key]:
        raise ValueError(
            f"{file}: expected a prediction of key {lacking[0]!r}, which results.json counts, "
            "found none: remove results.json and evaluate the run again"
        )
    return [by_key[key] for key in keys]
