"""A sweep: one experiment, changed in one way in each arm, with several seeds each.

A file of ``conf/sweeps`` says which arms there are. An arm is what one would type behind
``experiments/train.py`` to train it; the reference is the experiment as it is. The arm ``a`` of
experiment ``e`` is trained in ``<runs>/e-a/seed=<n>`` and the reference in ``<runs>/e/seed=<n>``:
sweeps share the reference's runs, and those of an arm of one name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf

from flamingo.composition import CONF, compose
from flamingo.config import RunConfig
from flamingo.identity import SHARDS, differences, flatten
from flamingo.structured import build, nearest, plain, require

SWEEPS = CONF / "sweeps"
OWN = ("name", "seed", "runs", "experiment")
"""What the sweep itself decides of each run."""


@dataclass(kw_only=True)
class SweepConfig:
    """A file of ``conf/sweeps``."""

    question: str = MISSING
    """What the sweep is to answer, for readers."""
    experiment: str = MISSING
    """Of ``conf/experiment``: what every arm starts from."""
    reference: str = MISSING
    """What the experiment as it is is called among the arms."""
    arms: dict[str, list[str]] = field(default_factory=dict)
    """Each arm's overrides of the experiment, as on the command line."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    shots: int = 4
    """Arms are tested at the most shots of each benchmark up to this; other numbers are shown."""

    def __post_init__(self) -> None:
        require(bool(self.arms), "arms", "at least one beside the reference", self.arms)
        require(self.reference not in self.arms, "reference", "no arm's name", self.reference)
        folders = [folder_name(arm) for arm in self.arms]
        distinct = len(set(folders)) == len(folders) and all(folders)
        require(distinct, "arms", "names that differ in letters and digits", list(self.arms))
        for arm, words in self.arms.items():
            own = [word for word in words if word.partition("=")[0] in OWN]
            require(not own, f"arms.{arm}", f"none of {', '.join(OWN)}", own)
        once = bool(self.seeds) and len(set(self.seeds)) == len(self.seeds)
        require(once, "seeds", "different seeds, at least one", self.seeds)
        require(self.shots >= 0, "shots", ">= 0", self.shots)


def load_sweep(name: str) -> SweepConfig:
    """``conf/sweeps/<name>.yaml``, or the file ``name`` if it ends in ``.yaml``.

    Raises ``ValueError`` if there is none, and for what does not fit.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else SWEEPS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in SWEEPS.glob("*.yaml"))
        raise ValueError(
            f"sweep: expected one of conf/sweeps ({', '.join(known)}) or a file of one, "
            f"got {name!r}{nearest(name, known)}"
        )
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
        _check_arms(values)
        return build(values, SweepConfig)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise ValueError(
            f"{path}: {line}expected YAML (an override with brackets or commas in quotes), got "
            f"{error.problem}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_arms(values: Any) -> None:
    """Say what is wrong with arms in words of their own, not in YAML's."""
    require(isinstance(values, dict), "the file", "keys and values", values)
    arms = values.get("arms", {})
    require(isinstance(arms, dict), "arms", "a mapping of names to overrides", arms)
    for name, words in arms.items():
        require(isinstance(name, str), "arms", "names that are text (in quotes)", name)
        are_words = isinstance(words, list) and all(isinstance(word, str) for word in words)
        require(are_words, f"arms.{name}", "a list of overrides, as [training.lr=1e-4]", words)


def folder_name(arm: str) -> str:
    """The arm's name within that of a folder."""
    return re.sub(r"[^\w.]+", "_", arm).strip("_")


# ---------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep: ``config`` is what ``train.py`` makes of ``words``."""

    arm: str
    seed: int
    config: RunConfig
    words: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep with all its runs composed, those of a seed together, the reference first."""

    title: str
    """That of its results: the file's name, and the runs' where it is their own."""
    config: SweepConfig
    runs: Sequence[SweepRun]
    overrides: tuple[str, ...]
    """What every run is told beside its arm."""

    @property
    def arms(self) -> list[str]:
        """All names, the reference's first."""
        return [self.config.reference, *self.config.arms]

    def changes(self, arm: str) -> dict[str, tuple[Any, Any]]:
        """Keys that ``arm`` changes, each with the reference's value and its own."""
        return changes(_first(self, self.config.reference), _first(self, arm))


def changes(reference: RunConfig, arm: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Keys of two configurations that differ, but for names and seeds, with both values.

    Shards in other places are other data: what an arm may be about.
    """
    return {
        key: both
        for key, both in differences(reference, arm, held_to=SHARDS).items()
        if key not in ("name", "seed", "runs")
    }


def compose_sweep(
    name: str,
    overrides: Sequence[str] = (),
    *,
    runs: str = "runs",
    run_name: str | None = None,
    seeds: Sequence[int] | None = None,
) -> Sweep:
    """The sweep ``name`` (of :func:`load_sweep`), every run of it composed and checked.

    ``run_name`` stands in place of the experiment's name in those of runs. Raises ``ValueError``
    for whatever is wrong with one of them; if ``overrides`` make other runs than the experiment's
    and there is no ``run_name`` to tell them apart; for an arm that changes nothing, trains for
    another number of steps or is evaluated otherwise than the reference.
    """
    config = load_sweep(name)
    if seeds is not None:
        config = replace(config, seeds=list(seeds))
    for word in overrides:
        key = word.partition("=")[0]
        hint = "; seeds=[...] are the sweep's" if key == "seed" else ""
        require(key not in OWN, key, f"none (a sweep gives each run its own{hint})", word)
    base = [f"experiment={config.experiment}"]
    own = compose(base)
    if run_name is None:
        run_name = own.name
        if differ := differences(own, compose([*base, *overrides])):
            raise ValueError(
                f"name: expected one of their own for runs that are not {own.name}'s "
                f"({', '.join(differ)} differ), got none"
            )
    planned = []
    for seed in config.seeds:
        for arm, words in {config.reference: [], **config.arms}.items():
            full = run_name if arm == config.reference else f"{run_name}-{folder_name(arm)}"
            said = (*base, *words, *overrides, f"name={full}", f"seed={seed}", f"runs='{runs}'")
            planned.append(SweepRun(arm, seed, _composed(name, arm, said), said))
    stem = Path(name).stem
    title = stem if run_name == own.name else f"{stem}-{run_name}"
    sweep = Sweep(title, config, planned, tuple(overrides))
    try:
        for arm in config.arms:
            _check(sweep, arm)
        _check_distinct(sweep)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return sweep


def _composed(name: str, arm: str, words: Sequence[str]) -> RunConfig:
    try:
        return compose(words)
    except ValueError as error:
        raise ValueError(f"{name}: arm {arm!r}: {error}") from error


def _check(sweep: Sweep, arm: str) -> None:
    """An arm differs from the reference, and in nothing that makes numbers incomparable."""
    reference, own = (_first(sweep, name) for name in (sweep.config.reference, arm))
    if not changes(reference, own):
        raise ValueError(
            f"arm {arm!r}: expected a change of the reference, got its own values "
            f"({', '.join(sweep.config.arms[arm]) or 'no override'})"
        )
    steps = reference.training.steps
    require(
        own.training.steps == steps,
        f"arm {arm!r}: training.steps",
        f"the reference's {steps}",
        own.training.steps,
    )
    first, second = (flatten(plain(config)["evaluation"]) for config in (reference, own))
    if differ := sorted(k for k in first.keys() | second.keys() if first.get(k) != second.get(k)):
        raise ValueError(
            f"arm {arm!r}: expected the reference's evaluation, got another "
            f"evaluation.{', evaluation.'.join(differ)}"
        )


def _check_distinct(sweep: Sweep) -> None:
    """Equal arms would be trained twice, and tested twice."""
    for one, other in combinations(sweep.config.arms, 2):
        if not changes(_first(sweep, one), _first(sweep, other)):
            raise ValueError(f"arms: expected different ones, got {one!r} and {other!r}: the same")


def _first(sweep: Sweep, arm: str) -> RunConfig:
    return next(run.config for run in sweep.runs if run.arm == arm)
