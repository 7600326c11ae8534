"""Which runs there are below a folder, and which of them have certain values in their config."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flamingo.config import RunConfig
from flamingo.identity import flatten
from flamingo.structured import (
    expected,
    explain,
    field_type,
    known_keys,
    plain,
    refuse,
    require,
    section,
)

LEFT_BY_RUNS = ("metrics.jsonl", "checkpoints", "predictions", "results.json")
"""What tells the folder of a run that has lost its ``config.yaml``."""


def run_folders(root: Path) -> tuple[list[Path], list[Path]]:
    """The folders below ``root`` (or itself) with a ``config.yaml``, and those that lack theirs.

    Hidden folders are passed over, and what is within a run is its own. Raises ``ValueError`` if
    ``root`` is no folder.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: expected a folder of runs, found none")
    whole, torn = [], []
    for place, folders, files in os.walk(root, followlinks=True):
        path = Path(place)
        if "config.yaml" in files:
            whole.append(path)
            folders.clear()
        elif re.fullmatch(r"seed=\d+", path.name) or {*LEFT_BY_RUNS} & {*folders, *files}:
            torn.append(path)
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return whole, torn


# ---------------------------------------------------------------------------- by values


Wanted = Mapping[str, Sequence[Any]]
"""Dotted key to the values that it may have, each as ``config.yaml`` has it."""


def wanted(where: object, also: Mapping[str, Any]) -> Wanted:
    """What ``where`` and ``also`` ask for: a value, or several of which one is enough, a key.

    Keys are dotted, or sections hold a mapping. For a field that is a list itself, several values
    are a list of lists. Raises ``ValueError`` naming the key for one that configs do not have (with
    the nearest that they have), for a value that it cannot have, and if ``where`` is no mapping.
    """
    if not isinstance(where, Mapping | None):
        raise ValueError(
            f"where: expected a mapping of keys to values, such as {{'training.steps': 100}}, got "
            f"{where!r}; by name: find(name={str(where)!r})"
        )
    keys = flatten({**(where or {}), **also})
    refuse([key for key in keys if field_type(RunConfig, key) is None], known_keys(RunConfig))
    return {key: [_stored(key, one) for one in _several(key, v)] for key, v in keys.items()}


def fits(config: RunConfig, asked: Wanted) -> bool:
    """Whether ``config`` has one of the values of every key."""
    return all(_value(config, key) in several for key, several in asked.items())


ABSENT = object()
"""The value of a field whose section is null."""


def _value(config: RunConfig, key: str) -> Any:
    """As ``config.yaml`` has it, enums by name; a section that is on is itself."""
    held: Any = config
    for name in key.split("."):
        if held is None:
            return ABSENT
        held = getattr(held, name)
    if isinstance(held, list):
        return [one.name if isinstance(one, Enum) else one for one in held]
    return held.name if isinstance(held, Enum) else held


def _several(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple | set | frozenset | range | np.ndarray):
        return [value]
    values = list(value)
    hint = field_type(RunConfig, key)
    is_list = any(get_origin(own) is list for own in (hint, *get_args(hint)))
    if is_list and not all(one is None or isinstance(one, list | tuple) for one in values):
        return [values]
    if not values:
        raise ValueError(f"{key}: expected at least one value, got none")
    return values


def _stored(key: str, value: Any) -> Any:
    """``value`` as a config holds it: an enum's name, a float for a whole number."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple):
        value = list(value)
    hint = field_type(RunConfig, key)
    require(section(hint) is None or value is None, key, expected(hint), value)
    given = OmegaConf.create()
    try:
        OmegaConf.update(given, key, str(value) if isinstance(value, Path) else value)
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), given)
    except OmegaConfBaseException as error:
        raise ValueError(explain(error, RunConfig)) from error
    held = OmegaConf.to_container(merged, enum_to_str=True)
    for name in key.split("."):
        assert isinstance(held, dict)
        held = held[name]
    return held


# ---------------------------------------------------------------------------- what differs


def differing(configs: Sequence[RunConfig]) -> dict[str, list[Any]]:
    """Keys that not all ``configs`` have the same value of, with each one's, in their order.

    None where a config lacks the key, its section being null; lists as tuples. Not ``name``,
    ``seed`` and ``runs``, which say where a run stands.
    """
    every = [flatten(plain(config)) for config in configs]
    columns: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for values in every for key in values):
        own = [values.get(key) for values in every]
        if key not in ("name", "seed", "runs") and any(value != own[0] for value in own):
            columns[key] = [tuple(v) if isinstance(v, list) else v for v in own]
    return columns
