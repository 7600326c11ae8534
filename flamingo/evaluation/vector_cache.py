"""Retrieval features on disk: computed once, found again by what they depend on.

``<folder>/<kind>-<fingerprint>.safetensors`` holds the vectors, the JSON file beside it says what
they are. The fingerprint covers everything the vectors depend on, the items and their order too, so
other features are another file and nothing is ever overwritten: a changed encoder, pooling or pool
is computed anew. Both files are written whole under another name and then renamed, the JSON last;
without it the vectors do not exist. Files that do not hold what their name says are an error.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from flamingo.backbones.fingerprint import fingerprint
from flamingo.files import write_atomically

FORMAT = 1
NAME = "vectors"


def cached_vectors(
    folder: str | Path,
    kind: str,
    source: str,
    keys: Sequence[str],
    compute: Callable[[], Float[Tensor, "item dim"]],
    storage: torch.dtype = torch.float16,
) -> Float[Tensor, "item dim"]:
    """The vectors of the items ``keys``, from ``folder`` or from ``compute`` (and then kept).

    ``kind`` begins the file's name (``"image"``). ``source`` says where the vectors come from: the
    fingerprint of the encoder and how it is pooled. ``keys`` identify what was encoded, in order:
    keys of images, or the texts themselves. The vectors come back in the dtype of ``storage``, now
    and later. Of two processes that need the same vectors one waits for the other.

    Raises ``ValueError`` if a file does not hold what its name says, if ``compute`` gives
    another number of vectors, or numbers that ``storage`` cannot hold.
    """
    meta = {
        "format": FORMAT,
        "kind": kind,
        "source": source,
        "items": len(keys),
        "keys": hashlib.sha256(json.dumps(list(keys)).encode()).hexdigest(),
        "dtype": str(storage).removeprefix("torch."),
    }
    own = fingerprint(**meta)
    path = Path(folder) / f"{kind}-{own[:16]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.with_suffix(".json").exists():
            return _read(path, meta)
        vectors = compute().detach().cpu()
        if vectors.ndim != 2 or len(vectors) != len(keys):
            raise ValueError(
                f"{kind} vectors: expected one for each of {len(keys)} items, "
                f"got shape {tuple(vectors.shape)}"
            )
        vectors = vectors.to(storage).contiguous()
        if not torch.isfinite(vectors).all():
            raise ValueError(
                f"{kind} vectors: expected finite numbers within {meta['dtype']}, got others"
            )
        _write(path, vectors, meta)
        return vectors


def _write(path: Path, vectors: Tensor, meta: dict[str, Any]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        safetensors.torch.save_file({NAME: vectors}, temporary)
        os.replace(temporary, path)
        write_atomically(path.with_suffix(".json"), json.dumps(meta, indent=1) + "\n")
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path, meta: dict[str, Any]) -> Float[Tensor, "item dim"]:
    described = path.with_suffix(".json")
    try:
        found = json.loads(described.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{described}: expected JSON ({error}); remove the file") from error
    if found != meta:
        raise ValueError(f"{described}: expected {meta}, got {found}; remove the file")
    try:
        vectors = safetensors.torch.load_file(path)[NAME]
    except (SafetensorError, KeyError, FileNotFoundError) as error:
        raise ValueError(
            f"{path}: expected the vectors that {described.name} describes ({error!r}); "
            "remove both files"
        ) from error
    if len(vectors) != meta["items"] or str(vectors.dtype) != f"torch.{meta['dtype']}":
        raise ValueError(
            f"{path}: expected {meta['items']} vectors of {meta['dtype']}, got {len(vectors)} of "
            f"{vectors.dtype}; remove both files"
        )
    return vectors
