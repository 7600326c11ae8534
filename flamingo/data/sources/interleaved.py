"""JSON lines of interleaved segments: the plain format that any data set can be written in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from flamingo.config import InterleavedSourceConfig
from flamingo.data.documents import BrokenShard, Dropped, Fitting, Record
from flamingo.data.stream import StreamSource
from flamingo.images import open_image
from flamingo.types import ImageRef, InterleavedSequence, Media, Text

NAME = "interleaved"


def shards_of(path: Path, field: str) -> list[str]:
    """The ``.jsonl`` files that ``path`` is or holds, by name. Raises ``ValueError`` for none."""
    found = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    if not found:
        raise ValueError(f"{field}: expected a .jsonl file or a folder of them, got {path}")
    return [str(file) for file in found]


def read_json_lines(shard: str) -> Iterator[Record]:
    """One record a line; a line that is no JSON object is an empty record.

    Raises :class:`BrokenShard` where the file cannot be read (further).
    """
    try:
        with open(shard, "rb") as file:
            for line in file:
                yield _record(line)
    except OSError as error:
        raise BrokenShard(shard, str(error)) from error


def _record(line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


@dataclass(frozen=True, slots=True)
class SegmentParser:
    """``{"segments": [...]}`` as it stands. Paths of images are relative to ``folder``."""

    folder: str

    def __call__(
        self, record: Record, generator: np.random.Generator
    ) -> InterleavedSequence | Dropped:
        match record:
            case {"segments": [*values]} if values:
                segments = [self._segment(value) for value in values]
            case _:
                return Dropped("no segments")
        known = tuple(segment for segment in segments if segment is not None)
        if len(known) < len(segments):
            return Dropped("unknown segment")
        return InterleavedSequence(known)

    def _segment(self, value: object) -> Text | Media | None:
        match value:
            case {"text": str(text), **rest} if rest in ({}, {"learn": True}, {"learn": False}):
                return Text(text, learn=bool(rest.get("learn", False)))
            case {"image": str(name), **rest} if not rest:
                path = Path(self.folder) / name
                return Media((ImageRef(str(path), partial(open_image, path)),))
            case _:
                return None


def interleaved_source(
    config: InterleavedSourceConfig, seed: int, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> StreamSource:
    """The stream of ``config``, with its held-out one if it has one.

    Raises ``ValueError`` if a path holds no shard.
    """

    def source(path: str, field: str, lanes: int, shuffle: int) -> StreamSource:
        place = Path(path).expanduser()
        shards = shards_of(place, field)
        parse = SegmentParser(str(Path(shards[0]).parent))
        fitting = Fitting(parse, tokenizer, max_tokens)
        return StreamSource(NAME, shards, read_json_lines, fitting, seed, lanes, shuffle)

    stream = source(
        config.path, "data.interleaved.path", config.lanes * config.sequences, config.shuffle
    )
    if config.validation is not None:
        # One lane a row and no shuffling: each validation reads only what it uses.
        stream.held_out = source(
            config.validation, "data.interleaved.validation", config.sequences, 1
        )
    return stream
