"""Runs reopened, in a notebook or anywhere else: by their path, or by what is in their config.

Nothing here writes. A run may still be going on, lack what was not copied with it, or stand where
its config does not say: what is there is read, what is not is named when it is asked for.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import nn

from flamingo.backbones.vision import VisionEncoder
from flamingo.choices import Condition
from flamingo.config import RunConfig
from flamingo.evaluation.loading import load_tokenizer
from flamingo.evaluation.predictions import Prediction
from flamingo.model.auto import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.naming import ALL
from flamingo.run_checks import check_backbones, check_device, choose, of_group
from flamingo.run_directory import RunDirectory, load_config
from flamingo.run_episodes import episode_table
from flamingo.run_images import Data, RunImages, Settings
from flamingo.run_selection import fits, run_folders, wanted
from flamingo.structured import plain
from flamingo.training.checkpoint import Checkpoint, complete_checkpoints
from flamingo.training.tracking import read_entries, read_metrics

CELL = ("benchmark", "condition", "shots", "group")
"""What names a row of results."""
NUMBERS = ("mean", "standard_error", "low", "high", "n", "clusters", "seeds")
"""What a row of results says: the mean (unscaled), its 95 % interval, and over how much.

NaN: unknown, as the interval where nothing varies."""
FACTS = ("metric", "unit", "chance")
"""What is said of a benchmark beside its results."""


# ---------------------------------------------------------------------------- one run


def load_run(path: str | Path) -> Run:
    """Open a run's directory, wherever it was moved or copied to.

    Raises ``ValueError`` if there is no run in ``path``, with one whose path is spelt like it.
    """
    return Run(RunDirectory(Path(path), load_config(Path(path) / "config.yaml")))


@dataclass(frozen=True, repr=False)
class Run:
    """A run as found on disk, read again at every access (it may be going on)."""

    directory: RunDirectory

    def __repr__(self) -> str:
        """``<Run runs/quickstart/seed=0: step 1000 of 1000, evaluated>``; opens no weights."""
        step = max(self.checkpoints, default=0)
        finished = "" if self.finished else ", not finished"
        evaluated = "evaluated" if self.evaluated else "not evaluated"
        steps = self.config.training.steps
        return f"<Run {self.path}: step {step} of {steps}{finished}, {evaluated}>"

    @property
    def path(self) -> Path:
        return self.directory.path

    @property
    def config(self) -> RunConfig:
        return self.directory.config

    @property
    def finished(self) -> bool:
        """Whether its training is done."""
        return self.directory.finished

    @property
    def evaluated(self) -> bool:
        """Whether there are results."""
        return self.directory.results.exists()

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a logged step, indexed by step; empty cells where a number was not logged."""
        frame = pd.DataFrame(read_metrics(self.directory.metrics))
        return frame.set_index("step") if len(frame) else frame

    @property
    def provenance(self) -> dict[str, Any]:
        return _read_json(self.directory.provenance)

    # ------------------------------------------------------------------ checkpoints

    @property
    def checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return [c.step for c in complete_checkpoints(self.directory.checkpoints)]

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of ``step``, or the newest. Raises ``ValueError`` if there is none."""
        saved = {c.step: c for c in complete_checkpoints(self.directory.checkpoints)}
        if not saved or (step is not None and step not in saved):
            wanted = "a checkpoint" if step is None else f"a checkpoint of step {step!r}"
            raise ValueError(
                f"{self.directory.checkpoints}: expected {wanted}, got {sorted(saved) or 'none'}"
            )
        return saved[max(saved) if step is None else step]

    def part_of_training(self, step: int) -> str:
        """``500 of 1,000 training steps``; "" for the last step, and where nothing was trained."""
        steps = self.config.training.steps
        converted = self.directory.conversion.exists()
        return "" if converted or step >= steps else f"{step:,} of {steps:,} training steps"

    def model(
        self,
        step: int | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
        language_model: nn.Module | None = None,
        vision_encoder: VisionEncoder | None = None,
    ) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
        """The model of a checkpoint (default: the newest) in eval mode, and its processor.

        ``dtype``: of all weights; default: float32, and the vision encoder in what this machine
        computes fast. Backbones are loaded by their names unless they are given (the names may be
        folders of another machine). Raises ``ValueError`` or ``OSError`` if there is no such
        checkpoint or device, and naming a backbone that is not there or is another one now.
        """
        folder = self.checkpoint(step).path
        check_backbones(language_model, vision_encoder)
        check_device(device)
        model = FlamingoForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, language_model=language_model, vision_encoder=vision_encoder
        )
        model.to(device)  # type: ignore[arg-type]
        return model.eval(), FlamingoProcessor.from_pretrained(folder)

    # ------------------------------------------------------------------ results

    @property
    def results(self) -> dict[str, Any]:
        """``results.json``. Raises ``ValueError`` before the run is evaluated."""
        if not self.evaluated:
            raise ValueError(
                f"{self.directory.results}: expected the results of an evaluation, found none; "
                f"run experiments/evaluate.py first"
            )
        return _read_json(self.directory.results)

    def scores(self, group: str | None = ALL) -> pd.DataFrame:
        """The model's results: a row a benchmark, condition and shot count, over all queries.

        Columns: :data:`CELL`, :data:`NUMBERS`, :data:`FACTS`. ``group``: over those of one kind of
        query; None: a row for each kind, and for all. Raises as :attr:`results`, and ``ValueError``
        for a ``group`` that no benchmark has.
        """
        return self._rows("model", group)

    def baselines(self, group: str | None = ALL) -> pd.DataFrame:
        """The baselines' results, as :meth:`scores`; ``condition`` names the baseline."""
        return self._rows("baselines", group)

    def differences(self, group: str | None = ALL) -> pd.DataFrame:
        """Paired differences between conditions (``"real - blank_query"``), as :meth:`scores`.

        Where all differences are equal there is no interval: nothing tells how far another could
        be.
        """
        return self._rows("differences", group)

    def _rows(self, part: str, group: str | None) -> pd.DataFrame:
        results = self.results
        facts = {own["name"]: {name: own.get(name) for name in FACTS} for own in _told(results)}
        parts = ("model", "baselines", "differences")
        known = [row["group"] for own in parts for row in results.get(own, [])]
        rows = [row | facts.get(row["benchmark"], {}) for row in results.get(part, [])]
        table = pd.DataFrame(rows, columns=[*CELL, *NUMBERS, *FACTS])
        # A column of nothing but None, as JSON has it, would hold no numbers.
        return of_group(table.astype(dict.fromkeys(NUMBERS[:4], float)), group, known)

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Which predictions ``results.json`` counts: ``cells.jsonl``, in its order.

        Of each benchmark, condition, shot count and seed of demonstrations the ``keys`` of the
        predictions, in the order of the queries. Raises ``ValueError`` if there is none.
        """
        if not self.directory.cells.exists():
            raise ValueError(
                f"{self.directory.cells}: expected the keys of the predictions that results.json "
                "counts, found no such file: evaluate the run again"
            )
        return read_entries(self.directory.cells)

    # ------------------------------------------------------------------ predictions

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
        known which these are, or if one is missing; and for a benchmark that has no prediction, or
        no such condition, once there are any.
        """
        return pd.DataFrame(
            {**labels, **row} for labels, row in self._lines(benchmark, condition, counted)
        )

    def episodes(
        self,
        benchmark: str | None = None,
        condition: str | None = None,
        *,
        counted: bool = False,
    ) -> pd.DataFrame:
        """:meth:`predictions` with what was asked and shown, in words; its images: :meth:`images`.

        Columns: :data:`flamingo.run_episodes.COLUMNS`, behind ``condition`` the ``seed`` if
        ``counted``. ``question`` and ``references`` (all right answers) are the query's;
        ``demonstrations`` (ids), ``demonstration_questions`` and ``demonstration_answers`` are
        tuples in the order of the prompt, as the model saw them under the condition. Raises as
        :meth:`predictions`, and for a line that is no prediction.
        """
        lines = self._lines(benchmark, condition, counted)
        labels = ("benchmark", "condition", *(["seed"] if counted else []))
        read = ((own, _prediction(own, row, self.path)) for own, row in lines)
        return episode_table(read, labels)

    def images(self, data: Data | None = None) -> RunImages:
        """Finds the images of a prediction again: ``run.images()(row).query`` is one of PIL.

        ``row`` is one of :meth:`episodes` or :meth:`predictions`. Nothing is looked for before it
        is called; then the run's data have to be there, and a checkpoint (for its tokenizer).
        ``data`` tells where they are if not where the configuration says; the embedded data sets
        are in the cache, and fetched if need be.
        """
        return RunImages(
            self.path,
            self.config,
            self._settings(),
            lambda: load_tokenizer(self.checkpoint().path),
            data or Data(),
        )

    def _lines(
        self, benchmark: str | None, condition: str | None, counted: bool
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Predictions as they are on disk, each behind what is said of it elsewhere."""
        self._check_names(benchmark, condition)
        if counted:
            yield from self._counted(benchmark, condition)
            return
        for file in sorted(self.directory.predictions.rglob("*.jsonl")):
            name = file.parent.relative_to(self.directory.predictions).as_posix()
            if benchmark in (None, name) and condition in (None, file.stem):
                labels = {"benchmark": name, "condition": file.stem}
                # One that was judged again has a further line, which replaces the one before.
                rows = {row["key"]: row for row in read_entries(file)}
                yield from ((labels, row) for row in rows.values())

    def _check_names(self, benchmark: str | None, condition: str | None) -> None:
        """Of a run without predictions nothing is known yet. A condition need not have any."""
        files = sorted(self.directory.predictions.rglob("*.jsonl"))
        names = [f.parent.relative_to(self.directory.predictions).as_posix() for f in files]
        conditions = [file.stem for file in files]
        if files and benchmark is not None:
            choose("benchmark", benchmark, names)
        if files and condition is not None and condition not in Condition.__members__:
            choose("condition", condition, conditions)

    def _counted(
        self, benchmark: str | None, condition: str | None
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        files: dict[Path, dict[str, dict[str, Any]]] = {}
        for cell in self.cells:
            labels = {name: cell[name] for name in ("benchmark", "condition", "seed")}
            if benchmark in (None, cell["benchmark"]) and condition in (None, cell["condition"]):
                file = self.directory.predictions_of(cell["benchmark"], cell["condition"])
                if file not in files:
                    files[file] = {row["key"]: row for row in read_entries(file)}
                yield from ((labels, row) for row in of_keys(files[file], cell["keys"], file))

    def _evaluations(self) -> list[tuple[Path, dict[str, Any]]]:
        """Every ``results.json``, the newest first."""
        earlier = sorted(self.path.glob("evaluations/*/results.json"), reverse=True)
        files = [self.directory.results] if self.evaluated else []
        return [(file, _read_json(file)) for file in (*files, *earlier)]

    def _settings(self) -> list[Settings]:
        """What is known of the evaluations that made the predictions, the likeliest first."""
        told = [(file, results["settings"]) for file, results in self._evaluations()]
        finished = [(file, own["evaluation"]) for file, own in told]
        return [*finished, (self.directory.config_file, plain(self.config)["evaluation"])]


def _told(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is said of each benchmark."""
    return results.get("benchmarks", [])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected a whole JSON file: {error}") from error


def _prediction(labels: Mapping[str, Any], row: dict[str, Any], path: Path) -> Prediction:
    try:
        return Prediction(**row)
    except TypeError as error:
        raise ValueError(
            f"{path}: {labels['benchmark']}, {labels['condition']}: expected a prediction, got "
            f"{str(row)[:60]}"
        ) from error


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


# ---------------------------------------------------------------------------- several runs


def find(
    where: Mapping[str, Any] | None = None, /, *, root: str | Path = "runs", **also: Any
) -> list[Run]:
    """The runs below ``root`` whose config has certain values, by their folders and seeds.

    ``find({"model.resampler.depth": 1, "seed": [0, 1]})``: a key has one value, or one of several
    (for a field that is a list itself: of several lists). ``also`` are keys without a dot. A field
    of a section that a run has switched off has no value.

    Warns of folders that hold a run but cannot be opened; they are left out. Raises ``ValueError``
    for a ``root`` without a run, for a ``where`` that is no mapping, and naming the key for one
    that no config has, or a value it cannot have.
    """
    asked = wanted(where, also)
    folders, torn = run_folders(Path(root))
    broken = [f"{path}: expected config.yaml in the folder of a run, found none" for path in torn]
    runs = []
    for folder in folders:
        try:
            runs.append(load_run(folder))
        except (ValueError, OSError) as error:
            broken.append(str(error))
    if broken:
        told = "\n".join(["runs that cannot be opened are left out:", *broken])
        warnings.warn(told, stacklevel=2)
    if not runs:
        raise ValueError(f"{root}: expected runs (folders with a config.yaml), found none")
    fitting = [run for run in runs if fits(run.config, asked)]
    return sorted(fitting, key=lambda run: (run.path.parent, run.config.seed, run.path))
