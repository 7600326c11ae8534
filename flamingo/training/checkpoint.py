"""Checkpoints that are either complete or not there.

``checkpoints/step_<n>/`` holds what the model's ``save_pretrained`` writes (the trained weights;
``from_pretrained`` opens the folder), ``training_state.pt`` (optimiser, random generators, running
means: all that resuming needs) and ``manifest.json``, which lists the files and their sizes. All is
written to a folder beside it, synced, and renamed last.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors.torch import load_file

from flamingo.data.stream import require_same_shards
from flamingo.files import UNFINISHED
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.persistence import load_trained_state

STATE_FILE = "training_state.pt"
MANIFEST_FILE = "manifest.json"


@runtime_checkable
class Saveable(Protocol):
    """A model or processor of transformers, or anything saved the same way."""

    def save_pretrained(self, save_directory: Path, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int
    config_hash: str

    def state(self) -> dict[str, Any]:
        """What resuming needs beside the weights, on the CPU."""
        return torch.load(self.path / STATE_FILE, map_location="cpu", weights_only=True)

    def require_shards(self, shards: Mapping[str, Sequence[str]]) -> None:
        """Raise ``ValueError`` if one of its streams was trained on others than ``shards``, the
        names by stream. What it does not tell (a converted run's) is passed over."""
        # Mapped: of gigabytes of an optimiser only the little that is looked at is read.
        state = torch.load(self.path / STATE_FILE, "cpu", weights_only=True, mmap=True)
        for name, stream in state.get("streams", {}).items():
            if name in shards:
                require_same_shards(name, stream, shards[name])


class CheckpointError(RuntimeError):
    """A checkpoint could not be written. Nothing saved before is touched."""


# ---------------------------------------------------------------------------- reading


def complete_checkpoints(folder: Path) -> list[Checkpoint]:
    """All complete checkpoints below ``folder``, oldest first.

    Left-overs of an interrupted save and folders with missing or truncated files (a copy that
    stopped half-way) are not among them.
    """
    if not folder.is_dir():
        return []
    found = [_read(path) for path in folder.iterdir() if re.fullmatch(r"step_\d+", path.name)]
    return sorted((c for c in found if c is not None), key=lambda c: c.step)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, or None."""
    return next(reversed(complete_checkpoints(folder)), None)


def _read(path: Path) -> Checkpoint | None:
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text())
        whole = all((path / n).stat().st_size == s for n, s in manifest["files"].items())
    except (OSError, json.JSONDecodeError):
        return None
    return Checkpoint(path, manifest["step"], manifest["config_hash"]) if whole else None


def load_trained_weights(model: FlamingoForConditionalGeneration, checkpoint: Checkpoint) -> None:
    """Put the checkpoint's trained weights and feature statistics into ``model``, in place.

    Raises ``ValueError`` when it was trained on other frozen backbones, and with the names when it
    has other weights than the model trains.
    """
    _require_same_backbones(model, checkpoint)
    weights = checkpoint.path / "model.safetensors"
    load_trained_state(model, load_file(weights), str(weights))


def _require_same_backbones(
    model: FlamingoForConditionalGeneration, checkpoint: Checkpoint
) -> None:
    saved = json.loads((checkpoint.path / "config.json").read_text())
    for name in ("vision_fingerprint", "language_fingerprint"):
        actual = getattr(model.config, name, None)
        if saved.get(name) != actual:
            raise ValueError(
                f"{checkpoint.path}: {name}: expected {saved.get(name)} (the backbone it was "
                f"trained on), got {actual}"
            )


# ---------------------------------------------------------------------------- writing


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    models: Sequence[Saveable],
    state: dict[str, Any],
    config_hash: str,
    keep: int,
) -> Checkpoint:
    """Write ``folder/step_<step>`` and delete all but the newest ``keep`` complete ones.

    ``models`` are saved by their ``save_pretrained`` (the model, and whatever belongs beside it).
    Old ones go only once the new one is complete. Raises :class:`CheckpointError`, with the folder
    and what is intact, when it cannot be written.
    """
    final = folder / f"step_{step}"
    unfinished = folder / f"{UNFINISHED}step_{step}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        unfinished.mkdir()
        for model in models:
            model.save_pretrained(unfinished)
        # Through a Python file: torch's own writer hides the reason when the disk is full.
        with (unfinished / STATE_FILE).open("wb") as file:
            torch.save(state, file)
        _write_manifest(unfinished, step, config_hash)
        _sync(unfinished)
        if final.exists():  # incomplete, or the same step of an earlier attempt
            shutil.rmtree(final)
        unfinished.rename(final)
        _sync_path(folder)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(_explain(error, final, folder)) from error
    for old in complete_checkpoints(folder)[:-keep]:
        if old.step < step:
            shutil.rmtree(old.path)
    return Checkpoint(final, step, config_hash)


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path)


def _write_manifest(folder: Path, step: int, config_hash: str) -> None:
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {"step": step, "config_hash": config_hash, "files": files}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1))


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync_path(path)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: Exception, final: Path, folder: Path) -> str:
    last = latest_checkpoint(folder)
    intact = f"The checkpoint in {last.path} is intact" if last else "No earlier checkpoint exists"
    if is_no_space(error):
        free = shutil.disk_usage(folder if folder.is_dir() else Path.cwd()).free
        what = f"no space left while saving {final} ({free / 2**20:.0f} MiB free)"
        return f"{what}. {intact}; free some space, and the same command continues."
    return f"could not save {final}: {error}. {intact}."


def is_no_space(error: BaseException) -> bool:
    """Whether ``error`` says that the disk or the quota is full (safetensors says it in words)."""
    full = {errno.ENOSPC, errno.EDQUOT}
    words = ("No space left", f"code: {errno.ENOSPC},", "quota exceeded")
    return getattr(error, "errno", None) in full or any(w in str(error) for w in words)


# ---------------------------------------------------------------------------- random generators


def random_state() -> dict[str, Any]:
    """The state of every global random generator, as values that load without pickled code."""
    numpy_state = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [v.tolist() if isinstance(v, np.ndarray) else v for v in numpy_state],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set every global random generator to what :func:`random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
