"""JSON lines of interleaved segments: the format for data of one's own.

A line is ``{"segments": [...]}``; a segment is one of ``{"text": "A cat.", "learn": true}``,
``{"image": "images/1.jpg"}`` and ``{"frames": ["clips/1/0.jpg", "clips/1/1.jpg"]}``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from flamingo.data.documents import Dropped, Record
from flamingo.data.interleaving import MALFORMED, NO_TEXT, unfit
from flamingo.data.shards import SHARD
from flamingo.data.stored_images import image_at
from flamingo.types import END_OF_CHUNK_TOKEN, InterleavedSequence, Media, Text


def parse_segments(record: Record, generator: np.random.Generator) -> InterleavedSequence | Dropped:
    """The segments as they are. Text is learned where ``learn`` is true.

    Nothing is added: spaces and ``<|endofchunk|>`` are for the texts to hold, ``<image>`` is not
    allowed in them. Paths are relative to the file's folder.
    """
    listed = record.get("segments")
    if not isinstance(listed, list):
        return MALFORMED
    folder = os.path.dirname(record[SHARD])
    segments = [_segment(segment, folder) for segment in listed]
    known = tuple(segment for segment in segments if segment is not None)
    if len(known) < len(segments):
        return MALFORMED
    texts = [segment for segment in known if isinstance(segment, Text)]
    refused = unfit(text.text.replace(END_OF_CHUNK_TOKEN, "") for text in texts)
    if refused is not None:
        return refused
    if not any(text.text for text in texts):
        return NO_TEXT
    return InterleavedSequence(known)


def _segment(segment: Any, folder: str) -> Text | Media | None:
    """None for what is no segment."""
    match segment:
        case {"text": str(text), **rest} if rest.keys() <= {"learn"}:
            learn = rest.get("learn", False)
            return Text(text, learn=learn) if isinstance(learn, bool) else None
        case {"image": str(path), **rest} if path and not rest:
            return _media([path], folder)
        case {"frames": [_, *_] as paths, **rest} if not rest:
            return _media(paths, folder) if all(isinstance(p, str) and p for p in paths) else None
        case _:
            return None


def _media(paths: Sequence[str], folder: str) -> Media:
    return Media(tuple(image_at(os.path.join(folder, path)) for path in paths))
