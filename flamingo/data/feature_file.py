"""A growing file of feature rows and its index: never half a row, whoever writes and stops when."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tqdm import tqdm

from flamingo.files import write_atomically

HASH_BYTES = 32
FORMAT = 1
KEEP_FREE = 64 * 2**20
"""Bytes of the disk that are left to others."""


class FeatureFile:
    """Rows ``(patches, dim)`` in half precision by content hash, in a subfolder of ``folder``.

    ``rows.f16`` holds the rows end to end, ``index.bin`` the hash of each row in the same order.
    A row is written and flushed first, its hash afterwards: a row without a hash does not exist,
    and the next writer cuts off what an interrupted one left. One process writes at a time (a lock
    file, which the system frees when its holder dies); readers need no lock, as a row with a hash
    stays where it is. ``computed_in`` names the dtype the encoder computes in, as that changes the
    features a little.

    Raises ``ValueError`` if the folder belongs to features of another kind.
    """

    def __init__(
        self, folder: Path, fingerprint: str, patches: int, dim: int, computed_in: str
    ) -> None:
        self.folder = folder / f"{fingerprint[:16]}-{computed_in}"
        self.patches, self.dim = patches, dim
        self._meta = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "computed_in": computed_in,
            "patches": patches,
            "dim": dim,
            "dtype": "float16",
        }
        self._row_bytes = patches * dim * 2
        self._map: np.memmap[Any, np.dtype[np.float16]] | None = None
        self._index: dict[bytes, int] = {}
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def _data_path(self) -> Path:
        return self.folder / "rows.f16"

    @property
    def _index_path(self) -> Path:
        return self.folder / "index.bin"

    @property
    def _meta_path(self) -> Path:
        return self.folder / "meta.json"

    # ------------------------------------------------------------------------ reading

    def stored(self) -> dict[bytes, int]:
        """The row of each stored content hash, whoever is writing meanwhile."""
        if not self._meta_path.exists():
            return {}
        self._check_meta()
        return {digest: row for row, digest in enumerate(self._hashes())}

    def read(self, rows: Sequence[int]) -> NDArray[np.float16]:
        """A copy of ``rows``, ``(row, patch, dim)``."""
        if self._map is None or max(rows, default=-1) >= len(self._map):
            count = self._data_path.stat().st_size // self._row_bytes
            shape = (count, self.patches, self.dim)
            self._map = np.memmap(self._data_path, np.float16, mode="r", shape=shape)
        return np.asarray(self._map[list(rows)])

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled as all its contents.
        return {**self.__dict__, "_map": None, "_index": {}}

    # ------------------------------------------------------------------------ writing

    @contextmanager
    def writing(self) -> Iterator[dict[bytes, int]]:
        """Hold the folder for writing; gives the row of each stored content hash.

        :meth:`append` keeps the given index up to date. Waits, and says so, while another process
        writes.
        """
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tqdm.write(f"waiting for another process that writes features to {self.folder}")
            lock.acquire()
        try:
            if not self._meta_path.exists():
                write_atomically(self._meta_path, json.dumps(self._meta, indent=1) + "\n")
            self._check_meta()
            self._index = {}
            self._recover()
            yield self._index
        finally:
            lock.release()

    def append(self, hashes: Sequence[bytes], rows: NDArray[np.float16]) -> None:
        """Store ``rows`` under ``hashes``; only within :meth:`writing`.

        Raises ``OSError`` naming the folder if the disk is full; what was stored whole is kept.
        """
        assert rows.shape == (len(hashes), self.patches, self.dim), rows.shape
        assert rows.dtype == np.float16, rows.dtype
        count = len(self._index)
        free = shutil.disk_usage(self.folder).free
        if free < rows.nbytes + KEEP_FREE:
            raise self._no_space(f"{free / 2**20:.0f} MiB free")
        try:
            _append(self._data_path, rows.tobytes())
            _append(self._index_path, b"".join(hashes))
        except OSError as error:
            self._recover()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._no_space(str(error)) from error
            raise
        except BaseException:  # interrupted between or within the two
            self._recover()
            raise
        self._index.update((digest, count + i) for i, digest in enumerate(hashes))

    def _recover(self) -> None:
        """Bring the index up to date; what was interrupted is cut off.

        Never a row that has its hash: a reader may know it by now.
        """
        for path in (self._data_path, self._index_path):
            path.touch()
        hashes = self._hashes()
        self._cut(len(hashes))
        self._index.update((digest, row) for row, digest in enumerate(hashes))

    def _hashes(self) -> list[bytes]:
        """Those of whole rows, in their order."""
        if not self._index_path.exists():
            return []
        # In this order: the rows of the hashes that were read are there.
        index = self._index_path.read_bytes()
        count = min(len(index) // HASH_BYTES, self._data_path.stat().st_size // self._row_bytes)
        return [index[i * HASH_BYTES : (i + 1) * HASH_BYTES] for i in range(count)]

    def _cut(self, count: int) -> None:
        """Keep the first ``count`` rows; the index first, so that it never names a missing row."""
        for path, size in (
            (self._index_path, count * HASH_BYTES),
            (self._data_path, count * self._row_bytes),
        ):
            if path.stat().st_size > size:
                os.truncate(path, size)

    def _check_meta(self) -> None:
        found = json.loads(self._meta_path.read_text(encoding="utf8"))
        if found != self._meta:
            raise ValueError(
                f"{self._meta_path}: expected {self._meta}, got {found}; remove the folder"
            )

    def _no_space(self, detail: str) -> OSError:
        return OSError(
            errno.ENOSPC,
            f"no space left for vision features ({detail}); what is stored is kept. Free some "
            "space, or name a folder on another disk: data.feature_cache=... of train.py and "
            "convert.py, else the environment variable FLAMINGO_CACHE",
            str(self.folder),
        )


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
