"""How far the runs of a sweep are, read from their folders, and how long the rest will take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from heapq import heapreplace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import OmegaConf

from flamingo.ablation.sweep import Sweep, SweepRun
from flamingo.build import open_data, shards_of
from flamingo.composition import update_evaluation
from flamingo.config import RunConfig
from flamingo.evaluation_config import EvaluationConfig, recorded, settings_of
from flamingo.identity import flatten
from flamingo.run_directory import RunDirectory, load_config
from flamingo.structured import build, plain
from flamingo.training.checkpoint import latest_checkpoint
from flamingo.training.tracking import read_metrics


class Stage(Enum):
    """What there is of a run."""

    waiting = "not begun"
    begun = "begun"
    trained = "trained"
    finished = "finished"
    """Trained, and evaluated with the settings that are asked for."""


@dataclass(frozen=True)
class Progress:
    """A run's stage and speed; None for what it does not tell yet."""

    stage: Stage
    step: int
    """Of the newest checkpoint: where the run continues."""
    step_seconds: float | None
    evaluation_seconds: float | None
    unlike: tuple[str, ...] = ()
    """Settings in which an evaluation that is there differs from the one that is asked for."""

    @property
    def words(self) -> str:
        """``begun, step 200``; ``trained, evaluated with another shots``."""
        if self.stage is Stage.begun:
            return f"begun, step {self.step}"
        other = f", evaluated with another {', '.join(self.unlike)}" if self.unlike else ""
        return f"{self.stage.value}{other}"


def progress_of(config: RunConfig, overrides: Sequence[str] = ()) -> Progress:
    """How far the run of ``config`` is, if ``overrides`` say how it is to be evaluated.

    Raises ``ValueError`` if its folder belongs to a run of another configuration, or of other
    shards.
    """
    directory = RunDirectory.open(config, write=False)
    checkpoint = latest_checkpoint(directory.checkpoints)
    step = checkpoint.step if checkpoint else 0
    results = _results(directory)
    stage = Stage.begun if directory.metrics.exists() or step else Stage.waiting
    unlike: tuple[str, ...] = ()
    if directory.finished:
        if directory.has_other_places:
            directory.require_shards(shards_of(open_data(config.data)))
        stage = Stage.trained
        if results is not None and results["step"] == step:
            asked = _asked(load_config(directory.config_file), overrides)
            unlike = _unlike(settings_of(results, directory.results), asked)
            stage = Stage.trained if unlike else Stage.finished
    seconds = results["timing"]["seconds"] if results else 0
    # One that predicted nothing new took no time.
    return Progress(stage, step, step_seconds(directory.metrics), seconds or None, unlike)


def _results(directory: RunDirectory) -> dict[str, Any] | None:
    return json.loads(directory.results.read_text()) if directory.results.exists() else None


def _unlike(evaluated: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields in which what was ``evaluated`` is not what is ``asked`` for."""
    own, wished = flatten(evaluated), flatten(asked)
    absent = object()
    return tuple(k for k in wished | own if own.get(k, absent) != wished.get(k, absent))


def _asked(config: RunConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """``settings.evaluation`` of the ``results.json`` that ``evaluate.py`` would write."""
    values = OmegaConf.create(plain(config))
    update_evaluation(values, overrides)
    return recorded(build(values.evaluation, EvaluationConfig))


def check_asked(sweep: Sweep) -> None:
    """Raise ``ValueError`` unless all runs are to be evaluated alike, and for a folder of another
    configuration.

    Of a run that is there it is its own ``config.yaml`` that says how, of another one the
    experiment; ``sweep.overrides`` go before both.
    """

    def asked(run: SweepRun) -> dict[str, Any]:
        file = RunDirectory.open(run.config, write=False).config_file
        return _asked(load_config(file) if file.exists() else run.config, sweep.overrides)

    reference, *others = sweep.runs
    wished = asked(reference)
    for run in others:
        own = asked(run)
        if unlike := _unlike(own, wished):
            values = flatten(wished)
            words = [f"evaluation.{key}={_typed(values[key])}" for key in unlike if key in values]
            raise ValueError(
                f"{run.config.directory}: expected to be evaluated as {reference.config.directory} "
                f"is, got another evaluation.{', evaluation.'.join(unlike)} (of a run's "
                f"config.yaml, or of the experiment now). For all of them type: {' '.join(words)}"
            )


def _typed(value: Any) -> str:
    """``value`` as one types it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def evaluation_words(overrides: Sequence[str]) -> list[str]:
    """Those of ``overrides`` that ``evaluate.py`` is to be told too."""
    return [word for word in overrides if word.startswith("evaluation.")]


def step_seconds(metrics: Path) -> float | None:
    """Seconds a step by the clock, with all between steps: of half the stretches at most this.

    Time in which the run stood still (interrupted, then continued) is one stretch of many.
    """
    entries = [entry for entry in read_metrics(metrics) if "time/unix" in entry]
    stretches = [
        (after["time/unix"] - before["time/unix"]) / (after["step"] - before["step"])
        for before, after in pairwise(entries)
        if after["step"] > before["step"]
    ]
    return median(stretches) if stretches else None


def seconds_left(runs: Sequence[tuple[SweepRun, Progress]], at_once: int = 1) -> float | None:
    """What the rest of ``runs`` takes, ``at_once`` of them at a time; None if nothing tells.

    Each goes, in their order, to the place that is free first. A run is as fast as it was, else as
    its arm's others in the middle, else as all. Loading and encoding images are not in it.
    """
    free = [0.0] * max(1, at_once)  # when each place is, as a heap
    for run, own in runs:
        if own.stage is Stage.finished:
            continue
        steps, needed = run.config.training.steps - own.step, 0.0
        if own.stage is not Stage.trained:
            speed = own.step_seconds or _typical(runs, run.arm, "step_seconds")
            if speed is None:
                return None
            needed += steps * speed
        needed += _typical(runs, run.arm, "evaluation_seconds") or 0.0
        heapreplace(free, free[0] + needed)
    return max(free)


def _typical(runs: Sequence[tuple[SweepRun, Progress]], arm: str, what: str) -> float | None:
    known = [(run.arm, value) for run, own in runs if (value := getattr(own, what)) is not None]
    chosen = [value for name, value in known if name == arm] or [value for _, value in known]
    return median(chosen) if chosen else None


def duration(seconds: float | None) -> str:
    """``3 h 05 min``, ``12 min``, ``40 s``."""
    if seconds is None:
        return "unknown"
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
