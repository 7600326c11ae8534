"""Short clips as frames, with captions: one medium of several frames."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from flamingo.choices import ClipStorage, FrameSampling
from flamingo.data.documents import Dropped, Record
from flamingo.data.interleaving import (
    MALFORMED,
    NO_CAPTION,
    NO_IMAGE,
    TOO_FEW_FRAMES,
    captioned,
)
from flamingo.data.records import text_of
from flamingo.data.shard_files import says_of_file
from flamingo.data.shards import KEY, Shards, open_shards
from flamingo.data.stored_images import stored_image
from flamingo.data.tables import FolderShards
from flamingo.source_config import ClipsSourceConfig
from flamingo.types import InterleavedSequence, Media

_FRAME = re.compile(r"(\d+)\.(?:jpg|jpeg|png|webp)", re.IGNORECASE)


def clip_shards(config: ClipsSourceConfig) -> Shards:
    """Where ``config`` says the clips are. Raises ``ValueError`` if there are none."""
    match config.storage:
        case ClipStorage.shards:
            return open_shards(config.shards)
        case ClipStorage.folders:
            assert config.folder is not None, "checked by the config"
            return FolderShards(config.folder)


class ClipParser:
    """``<image>caption<|endofchunk|>``, the image a clip of ``frames`` frames.

    Frames are the members ``0.jpg``, ``1.jpg``, ... (or png, webp; ``00000.jpg`` too), in the order
    of their numbers; the caption is ``txt`` or ``caption.txt``.
    """

    def __init__(self, config: ClipsSourceConfig) -> None:
        self.config = config

    def __call__(
        self, record: Record, generator: np.random.Generator
    ) -> InterleavedSequence | Dropped:
        names = frame_names(record)
        if not names:
            return NO_IMAGE
        if len(names) < self.config.frames:
            return TOO_FEW_FRAMES
        chosen = sampled(len(names), self.config.frames, self.config.sampling, generator)
        frames = [stored_image(f"{record[KEY]}/{names[n]}", record[names[n]]) for n in chosen]
        found = tuple(frame for frame in frames if frame is not None)
        if len(found) < len(frames):
            return TOO_FEW_FRAMES
        caption = _caption(record)
        if isinstance(caption, Dropped):
            return caption
        return captioned(Media(found), caption, self.config)


def frame_names(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are frames, by their numbers."""
    matches = (match for match in map(_FRAME.fullmatch, names) if match)
    return [match.string for match in sorted(matches, key=lambda match: int(match[1]))]


def sampled(
    frames: int, count: int, sampling: FrameSampling, generator: np.random.Generator
) -> list[int]:
    """``count`` of ``frames`` places, increasing.

    Even: of ``count`` equal stretches the middle (of two middle ones the later).
    """
    match sampling:
        case FrameSampling.even:
            return [(2 * place + 1) * frames // (2 * count) for place in range(count)]
        case FrameSampling.random:
            return sorted(int(n) for n in generator.choice(frames, count, replace=False))


def _caption(record: Record) -> str | Dropped:
    value: Any = record.get("txt")
    if value is None:
        path = record.get("caption.txt")
        if not isinstance(path, str):
            return NO_CAPTION
        try:
            with open(path, "rb") as file:
                value = file.read()
        except OSError as error:
            if says_of_file(error):
                return NO_CAPTION
            raise
    text = text_of(value)
    return MALFORMED if text is None else text
