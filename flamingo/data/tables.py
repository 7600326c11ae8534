"""Data sets that are no shards by themselves: a table in memory, and a folder of folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from flamingo.data.documents import Record
from flamingo.data.shards import read_records

_PER_SHARD = 64
"""Records: enough shards for every worker of every process, each with some records."""


def check_held_out(held_out: int, images: int, file: str) -> int:
    """Place of the first image that is held out. Raises ``ValueError`` if none is left."""
    if held_out >= images:
        raise ValueError(
            f"held_out: expected fewer than the {images} images of {file}, got {held_out}"
        )
    return images - held_out


class TableShards:
    """Records that are all in memory, in shards of successive ones named ``<name>#<first>``."""

    def __init__(self, name: str, records: Sequence[Record], per_shard: int = _PER_SHARD) -> None:
        if not records:
            raise ValueError(f"{name}: expected records, found none")
        self._records = records
        self._per_shard = per_shard
        self.shards = tuple(f"{name}#{first}" for first in range(0, len(records), per_shard))

    def read(self, shard: str) -> Iterator[Record]:
        first = int(shard.rpartition("#")[2])
        return read_records(shard, lambda: iter(self._records[first : first + self._per_shard]))


class FolderShards:
    """The sub-folders of ``folder``, each a record of its files: ``{name: path}``.

    Hidden files are left out. Raises ``ValueError`` if there are no sub-folders.
    """

    def __init__(self, folder: str | Path, per_shard: int = _PER_SHARD) -> None:
        self.folder = os.fspath(folder)
        found = os.scandir(folder) if os.path.isdir(folder) else ()
        self._names = sorted(entry.name for entry in found if entry.is_dir())
        if not self._names:
            raise ValueError(f"{folder}: expected a folder with sub-folders, found none")
        self._per_shard = per_shard
        firsts = range(0, len(self._names), per_shard)
        self.shards = tuple(f"{self.folder}#{first}" for first in firsts)

    def read(self, shard: str) -> Iterator[Record]:
        first = int(shard.rpartition("#")[2])
        names = self._names[first : first + self._per_shard]
        return read_records(shard, lambda: (self._files(name) for name in names))

    def _files(self, name: str) -> dict[str, str]:
        folder = os.path.join(self.folder, name)
        files = sorted(file for file in os.listdir(folder) if not file.startswith("."))
        return {file: os.path.join(folder, file) for file in files}
