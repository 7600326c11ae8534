"""Predictions on disk: one JSON line each, appended as they come, never rewritten."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path

from filelock import FileLock

BLOCK = 2**16
"""Bytes read at once from the end of a log, in search of its last whole line."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer and all that it depends on. ``key`` tells whether it still holds.

    ``target`` is the reference that a demonstration would show, ``references`` are all of them,
    none where the annotation is missing. ``score`` is None there, and where it depends on the other
    answers (CIDEr). ``question`` is the query's (None where another harness asks), ``shown`` are
    question and answer of each demonstration as the model saw them, in the order of the prompt.
    ``contents`` is a digest of what its images show, "" where they are drawn.
    """

    key: str
    model: str
    query: str
    shots: int
    demonstrations: list[str]
    prompt_hash: str
    prompt: str
    candidates: list[str]
    raw: str
    answer: str
    target: str
    probability: float
    score: float | None
    group: str
    cluster: str
    references: list[str] = field(default_factory=list)
    question: str | None = None
    shown: list[list[str]] = field(default_factory=list)
    contents: str = ""


def prediction_key(
    model: str,
    query: str,
    shots: int,
    prompt_hash: str,
    target: str,
    decoding: str,
    images: str = "",
) -> str:
    """16 hex digits of everything that matters for a prediction.

    ``model`` identifies the weights, ``decoding`` how they are used, ``images`` what the images
    show that the prompt names ("": they are drawn). The benchmark and the condition are those of
    the file.
    """
    parts = [model, query, shots, prompt_hash, target, decoding, *([images] if images else [])]
    content = json.dumps(parts)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_prediction(line: str | bytes) -> Prediction:
    """The prediction of a line. Raises ``ValueError`` or ``TypeError`` if it holds none."""
    return Prediction(**json.loads(line))


class PredictionFile:
    """``predictions/<benchmark>/<condition>.jsonl``, which several processes may append to.

    A prediction is there once its line is whole. Killed while it writes, a process leaves a torn
    last line: readers pass it over, and whoever appends next cuts it off, under a lock file beside
    the log that the system frees when its holder dies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_key: dict[str, Prediction] = {}
        self._lock = FileLock(path.with_name(f".{path.stem}.lock"))
        self._bytes = 0
        self._lines = 0
        self.read_on()

    def read_on(self) -> int:
        """Read what this or any other process has appended since; returns how many predictions.

        Raises ``ValueError`` naming file and line if a whole line is not a prediction.
        """
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            file.seek(self._bytes)
            content = file.read()
        *lines, torn = content.split(b"\n")
        for line in lines:
            self._lines += 1
            try:
                prediction = read_prediction(line)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{self.path}, line {self._lines}: expected a prediction, got {line[:60]!r}"
                ) from error
            self.by_key[prediction.key] = prediction
        self._bytes += len(content) - len(torn)
        return len(lines)

    def append(self, predictions: list[Prediction]) -> None:
        """Hand complete lines to the system in one write; :meth:`read_on` will find them.

        Raises ``OSError`` naming the file when they cannot be written; earlier lines are intact.
        """
        content = "".join(json.dumps(asdict(p)) + "\n" for p in predictions).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Others hold the lock for a fraction of a millisecond.
        with (
            self._lock.acquire(poll_interval=0.001),
            self.path.open("a+b", buffering=0) as file,
        ):
            _cut_torn_line(file)
            try:
                written = file.write(content)
                if written != len(content):
                    raise OSError(errno.ENOSPC, f"only {written} of {len(content)} bytes fit")
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"{error.strerror} while appending to {self.path}; what was predicted before "
                    "is intact, and the same command continues",
                ) from error


def _cut_torn_line(file: FileIO) -> None:
    """Cut off what stands behind the last newline."""
    end = start = file.seek(0, os.SEEK_END)
    while start:
        size = min(BLOCK, start)
        start = file.seek(start - size)
        newline = file.read(size).rfind(b"\n")
        if newline >= 0:
            start += newline + 1
            break
    if start < end:
        file.truncate(start)
