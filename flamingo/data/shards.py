"""Shards: the files a data set comes in, and the records in each, in the order of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Protocol, runtime_checkable

import fsspec
from fsspec.core import url_to_fs
from huggingface_hub.errors import HTTPError  # of the client that the hub's library uses

from flamingo.data.documents import BrokenShard, Record
from flamingo.data.shard_files import kind_of, read_file
from flamingo.source_config import ShardsConfig

KEY = "__key__"
"""Field of every record: ``<shard>/<number>``, different for each record of a place."""
SHARD = "__url__"
"""Field of every record: the shard it is from."""


@runtime_checkable
class Shards(Protocol):
    """A data set in parts that are read one by one; picklable, for data workers.

    Both are functions of the configuration and the files alone. A record has besides its own
    fields ``__key__``, unique within the data set, and ``__url__``, its shard.
    """

    @property
    def shards(self) -> Sequence[str]:
        """Their names, different from each other, always in the same order."""
        ...

    def read(self, shard: str) -> Iterator[Record]:
        """The records of a shard in its order. Raises ``BrokenShard`` where it breaks."""
        ...


class FileShards:
    """Shards that are files, all of one kind: parquet, JSON lines or webdataset tars.

    A row of parquet gives its columns, images not decoded (``{"bytes": ..., "path": ...}``); a
    line of JSON its object, ``{}`` if it is none; a tar its members by suffix, as bytes
    (``{"jpg": ..., "json": ...}``).

    Raises ``ValueError`` for no files, and for files of several kinds or of none of these.
    """

    def __init__(self, files: Sequence[str]) -> None:
        kinds = {kind_of(file) for file in files}
        if len(kinds) != 1 or None in kinds:
            odd = next((file for file in files if kind_of(file) is None), None)
            names = sorted(kind.value for kind in kinds if kind is not None)
            found = f"{odd!r}" if odd else f"{' and '.join(names) or 'none'}"
            raise ValueError(
                "shards: expected files of one kind (.parquet, .jsonl or .tar; a pattern such as "
                f"folder/*.tar chooses), got {found}"
            )
        self.shards = tuple(dict.fromkeys(files))

    def read(self, shard: str) -> Iterator[Record]:
        return read_records(shard, lambda: read_file(shard))


def open_shards(config: ShardsConfig) -> FileShards:
    """The shards that ``config`` describes, sorted by name (on the hub: in its order).

    Raises ``ValueError`` naming the pattern that no shard matches, and as :class:`FileShards`.
    """
    if config.hub is not None:
        return FileShards(_hub_files(config.hub, config))
    return FileShards([file for pattern in config.files for file in _matching(pattern)])


def read_records(shard: str, read: Callable[[], Iterator[Record]]) -> Iterator[Record]:
    """The records that ``read`` gives, with ``__key__`` and ``__url__``.

    Raises ``BrokenShard`` where ``read`` fails, whatever the failure (the decoders of damaged files
    raise nearly anything), but for memory, disks and networks that fail: that says nothing of the
    shard, and to pass it over would make what is learned depend on the weather.
    """
    records = None
    for number in count():
        try:
            records = records or read()
            record = next(records, None)
        except Exception as error:
            if _is_passing(error):
                raise
            raise BrokenShard(shard, f"{type(error).__name__}: {error}") from error
        if record is None:
            return
        yield {**record, KEY: f"{shard}/{number}", SHARD: shard}


def _is_passing(error: Exception) -> bool:
    """Whether the file may be read another time. (Damage is an ``OSError`` without a number.)"""
    if isinstance(error, FileNotFoundError):
        return False
    network = isinstance(error, ConnectionError | TimeoutError | HTTPError)
    return network or isinstance(error, MemoryError) or getattr(error, "errno", None) is not None


def _matching(pattern: str) -> list[str]:
    """The files that ``pattern`` names, sorted; of a folder those that can be shards."""
    filesystem, path = url_to_fs(pattern)
    folder = filesystem.isdir(path)
    found = filesystem.find(path) if folder else filesystem.glob(path)
    local = isinstance(filesystem, fsspec.get_filesystem_class("file"))
    names = [str(name) if local else filesystem.unstrip_protocol(name) for name in found]
    files = sorted(name for name in names if not folder or kind_of(name) is not None)
    if not files:
        raise ValueError(f"shards.files: expected files at {pattern!r}, found none")
    return files


def _hub_files(name: str, config: ShardsConfig) -> list[str]:
    """Addresses of the files of a split, each with the commit that it is of."""
    import datasets  # two seconds, which who has local shards need not wait

    builder = datasets.load_dataset_builder(name, config.configuration, revision=config.revision)
    splits = {str(split): files for split, files in (builder.config.data_files or {}).items()}
    if config.split not in splits:
        raise ValueError(
            f"shards.split: expected one of {', '.join(splits) or 'none'} of {name}, "
            f"got {config.split!r}"
        )
    return [str(file) for file in splits[config.split]]
