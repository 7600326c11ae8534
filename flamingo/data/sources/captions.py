"""Images with captions in shards: LAION, CC3M, CC12M as img2dataset writes them, and the like.

Schuhmann et al. 2022, "LAION-5B"; Sharma et al. 2018, "Conceptual Captions"; Changpinyo et al.
2021, "Conceptual 12M".
"""

from __future__ import annotations

import json

import numpy as np

from flamingo.data.documents import Dropped, Record
from flamingo.data.interleaving import MALFORMED, NO_CAPTION, NO_IMAGE, captioned
from flamingo.data.records import text_of
from flamingo.data.shards import KEY
from flamingo.data.stored_images import stored_image
from flamingo.source_config import CaptionShardsSourceConfig
from flamingo.types import InterleavedSequence, Media

_IMAGES = ("jpg", "jpeg", "png", "webp", "image")
_CAPTIONS = ("txt", "caption", "text")


class CaptionParser:
    """``<image>caption<|endofchunk|>``, of the fields that the config names."""

    def __init__(self, config: CaptionShardsSourceConfig) -> None:
        self.config = config

    def __call__(
        self, record: Record, generator: np.random.Generator
    ) -> InterleavedSequence | Dropped:
        refs = ((name, stored_image(f"{record[KEY]}/{name}", record.get(name))) for name in _IMAGES)
        ref = next((ref for _, ref in refs if ref is not None), None)
        if ref is None:
            return NO_IMAGE
        caption = _caption(record)
        if isinstance(caption, Dropped):
            return caption
        return captioned(Media((ref,)), caption, self.config)


def _caption(record: Record) -> str | Dropped:
    field = next((name for name in _CAPTIONS if record.get(name) is not None), None)
    if field is not None:
        text = text_of(record[field])
        return MALFORMED if text is None else text
    try:
        about = json.loads(record.get("json") or "{}")
    except (TypeError, ValueError, RecursionError):
        return MALFORMED
    text = about.get("caption") if isinstance(about, dict) else None
    return text if isinstance(text, str) else NO_CAPTION
