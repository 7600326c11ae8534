"""The tensors of a released checkpoint, read one at a time."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils.hub import cached_file

Shape = tuple[int, ...]


@dataclass(frozen=True)
class WeightFiles:
    """A checkpoint's tensors by key, whatever files they are spread over.

    The files are mapped into memory: a tensor takes none before it is used, and a copy of it is
    what stays.
    """

    source: str
    """What errors call it."""
    shapes: Mapping[str, Shape]
    _readers: Mapping[str, Callable[[], Tensor]]

    def __getitem__(self, key: str) -> Tensor:
        return self._readers[key]()


def open_weights(name: str, revision: str | None = None) -> WeightFiles:
    """The weights of a local folder or hub model in transformers' format.

    ``model.safetensors``, alone or in shards with an index; where there is none,
    ``pytorch_model.bin`` likewise, of which only tensors are read.

    Raises:
        ValueError: no such files, or a ``.bin`` file that holds more than tensors.
        OSError: no such folder or hub model (from transformers).
    """
    for single, index in (
        (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME),
        (WEIGHTS_NAME, WEIGHTS_INDEX_NAME),
    ):
        whole = find_file(name, single, revision)
        if whole is not None:
            return read_files(name, [whole])
        listing = find_file(name, index, revision)
        if listing is not None:
            shards = sorted(set(json.loads(listing.read_text())["weight_map"].values()))
            found = {shard: find_file(name, shard, revision) for shard in shards}
            missing = [shard for shard, path in found.items() if path is None]
            if missing:
                raise ValueError(f"{name}: expected the files that {index} names, lacks {missing}")
            return read_files(name, [path for path in found.values() if path is not None])
    raise ValueError(
        f"{name}: expected weights in {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME} (or their shards with "
        "an index), found neither"
    )


def find_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a local folder or hub model, on disk; ``None`` if it has no such file."""
    found = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def read_files(source: str, paths: list[Path]) -> WeightFiles:
    """The tensors of these files together.

    Raises ``ValueError`` for a file that is missing, broken, or a pickle with more than tensors and
    plain values (to read that is to run code from the file), and for a key in two files.
    """
    shapes: dict[str, Shape] = {}
    readers: dict[str, Callable[[], Tensor]] = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(f"expected a file of weights, found none at {path}")
        own_shapes, own_readers = _safetensors(path) if _is_safe(path) else _pickled(path)
        twice = sorted(set(own_shapes) & set(shapes))
        if twice:
            raise ValueError(f"{path}: expected keys that no other file has, got also {twice}")
        shapes |= own_shapes
        readers |= own_readers
    return WeightFiles(source, shapes, readers)


def _is_safe(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _safetensors(path: Path) -> tuple[dict[str, Shape], dict[str, Callable[[], Tensor]]]:
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file, got {error}") from error
    shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return shapes, {key: partial(file.get_tensor, key) for key in shapes}


def _pickled(path: Path) -> tuple[dict[str, Shape], dict[str, Callable[[], Tensor]]]:
    """A file of ``torch.save``: tensors by name, or a training run's checkpoint with them in it."""
    content = _unpickled(path)
    for wrapper in ("model_state_dict", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    state = content if isinstance(content, dict) else {}
    strange = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if not state or strange:
        got = f"also {strange[:5]}" if strange else type(content).__name__
        raise ValueError(f"{path}: expected tensors by name, got {got}")
    return {k: tuple(t.shape) for k, t in state.items()}, {
        k: partial(state.__getitem__, k) for k in state
    }


def _unpickled(path: Path) -> Any:
    try:
        # Files of torch before 1.6 are no archives; these alone are read whole.
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: expected tensors and plain values alone, got {_kind(path)}"
        ) from error
    except (RuntimeError, EOFError) as error:
        told = str(error) or _kind(path)
        raise ValueError(f"{path}: expected a whole file of torch.save, got {told}") from error


def _kind(path: Path) -> str:
    """What a file is that cannot be read as tensors."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs: fetch the file itself"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page"
    if zipfile.is_zipfile(path) or start.startswith(b"\x80"):
        return "a pickle that would run code when it is read: it is refused"
    return "no file of torch.save"


def check_shapes(
    source: str,
    expected: Mapping[str, Shape],
    actual: Mapping[str, Shape],
    *,
    optional: Collection[str] = (),
) -> None:
    """Raise ``ValueError`` listing keys that are missing, left over or of another shape."""
    missing = sorted(set(expected) - set(actual) - set(optional))
    left_over = sorted(set(actual) - set(expected))
    reshaped = [
        f"{key}: expected {expected[key]}, got {actual[key]}"
        for key in sorted(set(expected) & set(actual))
        if expected[key] != actual[key]
    ]
    if missing or left_over or reshaped:
        raise ValueError(
            f"{source}: missing {missing}, left over {left_over}, of another shape {reshaped}"
        )
