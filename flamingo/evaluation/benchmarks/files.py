"""What the readers share: typed JSON with errors that name the place, images by path, submissions.

A format is declared as small dataclasses of the fields that are used; other fields of the files are
ignored. Types are strict: a number in quotes is not a number.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

from pydantic import FailFast, TypeAdapter

from flamingo.evaluation.benchmarks.examples import Example
from flamingo.files import write_atomically
from flamingo.images import open_image
from flamingo.typed_json import parse_json
from flamingo.types import ImageRef

T = TypeVar("T")
Records = Annotated[list[T], FailFast()]
"""A list in a file that may be long: it is left at the first malformed record."""


# ---------------------------------------------------------------------------- annotation files


def read_json(path: Path, schema: type[T]) -> T:
    """The JSON file ``path`` as an object of ``schema``.

    Raises ``ValueError`` naming the file, the place in it, what was expected and what came.
    """
    return _parse(TypeAdapter(schema).validate_json, _bytes(path), str(path))


def read_json_records(path: Path, record: type[T]) -> list[T]:
    """A JSON file that is one list of ``record``. Raises as :func:`read_json`."""
    schema: Any = GenericAlias(list, record)
    return _parse(TypeAdapter(schema).validate_json, _bytes(path), str(path))


def read_json_table(path: Path, record: type[T]) -> dict[str, T]:
    """A JSON file that is one object of ``record`` by id. Raises as :func:`read_json`."""
    schema: Any = GenericAlias(dict, (str, record))
    return _parse(TypeAdapter(schema).validate_json, _bytes(path), str(path))


def read_json_lines(path: Path, record: type[T]) -> list[T]:
    """A file of one ``record`` a line; empty lines are nothing. Raises as :func:`read_json`."""
    validate_json = TypeAdapter(record).validate_json
    return [
        _parse(validate_json, line, f"{path}, line {number}")
        for number, line in enumerate(_bytes(path).splitlines(), start=1)
        if line.strip()
    ]


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(
            f"{path}: expected a file, found {'a folder' if path.is_dir() else 'none'}"
        )
    return path.read_bytes()


def _parse(validate_json: Callable[..., T], data: bytes, name: str) -> T:
    try:
        return parse_json(validate_json, data)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def check_unique(examples: Sequence[Example], source: Path) -> list[Example]:
    """The examples as they are. Raises ``ValueError`` naming the first id that comes twice."""
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise ValueError(f"{source}: expected different ids, got {example.id!r} twice")
        seen.add(example.id)
    return list(examples)


# ---------------------------------------------------------------------------- images


def image_ref(key: str, folder: Path, name: str) -> ImageRef:
    """The image file ``name`` below ``folder``; nothing is read before it is opened."""
    # A string and not a Path: a data set has up to millions of images.
    return ImageRef(key, partial(open_image, os.path.join(folder, name)))


def image_file(image: ImageRef) -> str | None:
    """The path that an image is opened from, None for one that is no file of its own."""
    is_file = isinstance(image.open, partial) and image.open.func is open_image
    return os.fspath(image.open.args[0]) if is_file else None


@runtime_checkable
class Stored(Protocol):
    """How an image is opened that is kept inside another file."""

    def stored(self) -> bytes:
        """The image as it is kept there, encoded."""
        ...


def content_digest(image: ImageRef) -> str:
    """SHA-256 of the bytes that an image is decoded from; "" for one that is drawn when opened.

    Raises ``OSError`` for a file that cannot be read.
    """
    path = image_file(image)
    if path is not None:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(image.open.stored()).hexdigest() if isinstance(image.open, Stored) else ""


def check_images(examples: Iterable[Example]) -> None:
    """Raises ``ValueError`` with the first missing image file and the number of missing ones.

    Each folder is listed once and no file is opened, so that millions are checked in seconds also
    over a network. Images that are not files of their own are not looked at.
    """
    images = (image for example in examples for image in example.images)
    # By file and not by key: a folder that is wrong in one place may be right in another.
    opened = (image_file(image) for image in images)
    files = list(dict.fromkeys(file for file in opened if file is not None))
    by_folder: dict[str, set[str]] = defaultdict(set)
    for folder, name in map(os.path.split, files):
        by_folder[folder].add(name)
    missing = {
        os.path.join(folder, name)
        for folder, names in by_folder.items()
        for name in names - _file_names(folder)
    }
    if missing:
        first = next(file for file in files if file in missing)
        raise ValueError(
            f"{first}: no such image file; {len(missing):,} of {len(files):,} images are missing"
        )


def _file_names(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


# ---------------------------------------------------------------------------- submissions


def pair_answers(examples: Sequence[Example], answers: Mapping[str, T]) -> list[tuple[Example, T]]:
    """Each example with its answer by id, in the examples' order.

    Raises ``ValueError`` unless there is exactly one answer an example: servers refuse a part.
    """
    missing = [example.id for example in examples if example.id not in answers]
    unknown = answers.keys() - {example.id for example in examples}
    for kind, ids in (("without an answer", missing), ("answers to no question", sorted(unknown))):
        if ids:
            raise ValueError(
                f"answers: expected one for each of the {len(examples):,} questions, "
                f"got {len(ids):,} {kind}, such as {ids[0]!r}"
            )
    return [(example, answers[example.id]) for example in examples]


def write_json(path: Path, content: Any) -> None:
    """``content`` as one JSON file (ASCII, as every server reads it)."""
    write_atomically(path, json.dumps(content))
