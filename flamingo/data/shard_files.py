"""Reading one file of records, from its first to its last, without ever holding the whole of it.

The readers of ``datasets`` are not used. They fit records to the fields and types of the first few,
so that a member or key that comes later is lost or an error; of a damaged file they give records up
to a block of 10 MB before the damage (JSON), up to one that differs from run to run (parquet, read
ahead in threads), or as if it ended there (a tar with a damaged header).
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

_OF_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
_ROWS = 16
"""Rows of parquet that are in memory at a time: documents with images are large."""


class Kind(Enum):
    """Of a file of records."""

    parquet = "parquet"
    json_lines = "JSON lines"
    tar = "tars"


_SUFFIXES = {
    ".parquet": Kind.parquet,
    **{
        f"{name}{compression}": Kind.json_lines
        for name in (".jsonl", ".json")
        for compression in ("", ".gz", ".zst", ".zip")
    },
    **dict.fromkeys((".tar", ".tar.gz", ".tgz"), Kind.tar),
}


def kind_of(file: str) -> Kind | None:
    """By the file's suffix; None if it is not that of a shard."""
    name = file.lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)


def read_file(file: str) -> Iterator[dict[str, Any]]:
    """The records of ``file`` in its order. Raises where it is damaged, after those before that."""
    match kind_of(file):
        case Kind.parquet:
            yield from _parquet_rows(file)
        case Kind.json_lines:
            with _decompressed(file) as lines:
                yield from _json_lines(lines)
        case Kind.tar:
            with open_file(file) as archive:
                yield from _tar_samples(archive)
        case None:
            raise ValueError(f"{file}: expected a suffix of {', '.join(_SUFFIXES)}")


def says_of_file(error: OSError) -> bool:
    """Whether ``error`` is about the file: it is not there, or no file, or cannot have that name.

    Any other one (a disk or network that fails, a folder that may not be entered) says nothing of
    it: taken for the file's, it would make what is learned depend on the weather.
    """
    return error.errno in _OF_FILE


def open_file(path: str) -> IO[bytes]:
    """A file of any file system that ``fsspec`` knows, for reading."""
    return fsspec.open(path, "rb").open()  # pyright: ignore[reportAttributeAccessIssue]


# ---------------------------------------------------------------------------- parquet


def _parquet_rows(file: str) -> Iterator[dict[str, Any]]:
    with open_file(file) as raw:
        table = pq.ParquetFile(raw, buffer_size=1 << 20)  # pages, not whole columns of a group
        for group in range(table.num_row_groups):
            # Neither ahead nor in threads, so that damage always strikes at the same row.
            for rows in table.iter_batches(_ROWS, row_groups=[group], use_threads=False):
                yield from rows.to_pylist()


# ---------------------------------------------------------------------------- JSON lines


@contextmanager
def _decompressed(file: str) -> Iterator[Iterable[bytes]]:
    with open_file(file) as raw:
        match os.path.splitext(file)[1].lower():
            case ".gz":
                yield gzip.GzipFile(fileobj=raw)
            case ".zst":
                yield io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))
            case ".zip":  # as MMC4 is published: one file in each
                with zipfile.ZipFile(raw) as archive:
                    (name,) = archive.namelist()
                    with archive.open(name) as member:
                        yield member
            case _:
                yield raw


def _json_lines(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """A line that is no JSON object is an empty record, which no parser takes: one line is lost."""
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        yield record if isinstance(record, dict) else {}


# ---------------------------------------------------------------------------- tars


class _Member(tarfile.TarInfo):
    """A member whose header is never taken for the archive's end unless it is that."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> tarfile.TarInfo:  # the base's own name
        return _checked_header(super().fromtarfile, tarfile)


def _checked_header(read: Any, archive: tarfile.TarFile) -> tarfile.TarInfo:
    try:
        return read(archive)
    except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
        raise
    except tarfile.HeaderError as error:
        raise tarfile.ReadError(
            f"damaged or truncated at byte {archive.offset:,} ({error})"
        ) from error


def _tar_samples(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Successive members that share a name up to its first dot, by what follows it.

    A sample is given once the next one has begun or the archive has ended, so that none is given
    in part. Hidden files and files without a suffix are not members of samples. Raises
    ``ValueError`` for two members of one name.
    """
    sample: dict[str, Any] = {}
    current = None
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive:
        for member in archive:
            vars(archive)["members"] = []  # else it remembers every header
            folder, name = os.path.split(member.name)
            stem, dot, suffix = name.partition(".")
            if not member.isreg() or not stem or not dot or stem.startswith("__"):
                continue
            content = archive.extractfile(member)
            assert content is not None, "a regular file has content"
            data = content.read()
            if len(data) != member.size:
                raise tarfile.ReadError(f"{member.name}: {len(data):,} of {member.size:,} bytes")
            if current is not None and (folder, stem) != current:
                yield sample
                sample = {}
            current = (folder, stem)
            if suffix.lower() in sample:
                raise ValueError(f"{member.name}: expected different members, got it twice")
            sample[suffix.lower()] = data
    if current is not None:
        yield sample
