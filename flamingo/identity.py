"""Whether two configurations are one run: which fields decide its weights, and a hash of those.

A run may be continued by a configuration that differs in nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from flamingo.choices import Schedule
from flamingo.config import STREAMS, RunConfig
from flamingo.structured import plain

SHARDS = tuple(f"data.{name}.shards.files" for name in STREAMS)
"""Where shards stand. Whether other places hold the same ones is told by number and names, from a
checkpoint (``RunDirectory.require_shards``)."""

MAY_CHANGE = (
    "runs",  # where the directory stands
    *SHARDS,
    "data.workers",
    "data.feature_cache",
    *(f"data.{name}.validation" for name in STREAMS),
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
    *(f"data.{name}" for name in STREAMS),
    "training.micro_batch_tokens",
    "training.packing",
    "data.mixing",
)
"""Fields that earlier versions lacked. Their defaults are what those versions did, so a run has the
same identity with a default as without the field."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"training": {"lr": 1}}`` as ``{"training.lr": 1}``; keys may have dots already."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _may_change(name: str) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in MAY_CHANGE)


def differences(
    stored: RunConfig, given: RunConfig, held_to: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Fields that make ``given`` another run than ``stored``, with both values. Those of
    ``held_to`` do so too, whether or not they may change.

    ``training.steps`` may grow under a constant learning rate: the longer run's first steps are
    the shorter run's. Under any other schedule they are not.
    """
    old, new = flatten(plain(stored)), flatten(plain(given))
    differ = {
        name: (old.get(name, "absent"), new.get(name, "absent"))
        for name in sorted(old.keys() | new.keys())
        if old.get(name, "absent") != new.get(name, "absent")
        and (name in held_to or not _may_change(name))
    }
    constant = given.training.schedule is Schedule.constant
    if constant and given.training.steps > stored.training.steps:
        differ.pop("training.steps", None)
    return differ


def other_places(stored: RunConfig, given: RunConfig) -> bool:
    """Whether ``given`` has its shards in other places: moved ones, or others."""
    old, new = flatten(plain(stored)), flatten(plain(given))
    return any(old.get(name) != new.get(name) for name in SHARDS)


def config_hash(config: RunConfig) -> str:
    """Identifies a run: equal for configs that may continue one another."""
    every = flatten(plain(config))
    values = {name: value for name, value in every.items() if not _may_change(name)}
    defaults = flatten(plain(RunConfig(name="any")))
    for name in ADDED_LATER:
        if name in values and values[name] == defaults[name]:  # a section that is set has fields
            del values[name]
    values |= {name: defaults[name] for name in ONCE_FIXED}
    if config.training.schedule is Schedule.constant:
        del values["training.steps"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
