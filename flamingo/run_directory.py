"""A run's directory: whom it belongs to, and where things are in it.

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

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flamingo.config import RunConfig, config_from_yaml, config_to_yaml
from flamingo.files import write_atomically
from flamingo.identity import config_hash, differences, other_places
from flamingo.provenance import circumstances, uncommitted_changes
from flamingo.training.checkpoint import complete_checkpoints, latest_checkpoint


def load_config(path: Path) -> RunConfig:
    """Read a ``config.yaml``. Raises ``ValueError`` naming the file if it does not fit."""
    if not path.is_file():
        seeds = sorted(found.parent.name for found in path.parent.glob(f"seed=*/{path.name}"))
        raise ValueError(
            f"{path}: expected a run's configuration, found no such file"
            + (f", but one in each of {seeds}: name one of them" if seeds else _nearest(path))
        )
    try:
        return config_from_yaml(path.read_text())
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{path}: expected a configuration of this version: {error}") from error


def _nearest(file: Path) -> str:
    """``; did you mean <folder>?`` with a run whose path is spelt much like that of ``file``."""
    near = nearest_run(file.parent)
    return "" if near is None else f"; did you mean {near}?"


def nearest_run(path: Path) -> Path | None:
    """The folder of a run, if any, that ``path`` is a misspelling of.

    Each name on the way that is not there is taken for those nearest to it. Without the folder of a
    seed the first one is meant.
    """
    places = [Path(path.anchor)]
    for name in path.relative_to(path.anchor).parts:
        places = [own for place in places for own in _spelt(place, name)]
    seeds = [seed for place in places for seed in sorted(place.glob("seed=*"))]
    return next((own for own in (*places, *seeds) if (own / "config.yaml").is_file()), None)


def _spelt(folder: Path, name: str) -> list[Path]:
    """The folder ``name`` in ``folder`` or, if there is none, those of names like it."""
    if (folder / name).is_dir():
        return [folder / name]
    try:
        names = [own.name for own in folder.iterdir() if own.is_dir()]
    except OSError:  # not ours to look into
        return []
    return [folder / own for own in get_close_matches(name, names)]


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

    @property
    def has_other_places(self) -> bool:
        """Whether its ``config.yaml`` has the shards in other places than this configuration.

        :meth:`require_shards` then tells moved ones from others.
        """
        return self.config_file.exists() and other_places(
            load_config(self.config_file), self.config
        )

    def require_shards(self, shards: Mapping[str, Sequence[str]]) -> None:
        """Raise ``ValueError`` if a stream was trained on other shards than it has in ``shards``
        (names, by stream), by the newest checkpoint. Moved ones are the same."""
        checkpoint = latest_checkpoint(self.checkpoints)
        if checkpoint is None:
            return
        try:
            checkpoint.require_shards(shards)
        except ValueError as error:
            raise ValueError(
                f"{checkpoint.path}: data.{error}: give the run on these another name="
            ) from error

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
