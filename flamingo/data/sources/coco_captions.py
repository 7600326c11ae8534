"""COCO captions: photographs with five captions each, from the official annotations.

Chen et al. 2015, "Microsoft COCO Captions" (cocodataset.org).
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import FailFast, TypeAdapter

from flamingo.data.documents import Dropped, Record
from flamingo.data.interleaving import NO_CAPTION, captioned
from flamingo.data.stored_images import image_at
from flamingo.data.tables import TableShards, check_held_out
from flamingo.source_config import COCOCaptionsSourceConfig
from flamingo.typed_json import parse_json
from flamingo.types import InterleavedSequence, Media


@dataclass(frozen=True, slots=True)
class _Image:
    id: int
    file_name: str


@dataclass(frozen=True, slots=True)
class _Annotation:
    image_id: int
    caption: str


@dataclass(frozen=True, slots=True)
class _File:
    images: Annotated[list[_Image], FailFast()]
    annotations: Annotated[list[_Annotation], FailFast()]


def coco_caption_shards(config: COCOCaptionsSourceConfig, *, held_out: bool = False) -> TableShards:
    """A record an image in the order of the file: ``path``, and ``captions`` in that order.

    All but the last ``config.held_out`` images, or these alone. Raises ``ValueError`` for a
    malformed file, for captions of images that it does not have, and if all are held out.
    """
    path = Path(config.annotations)
    if not path.is_file():
        raise ValueError(f"annotations: expected a file, found none at {path}")
    try:
        content = parse_json(TypeAdapter(_File).validate_json, path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    captions: dict[int, list[str]] = defaultdict(list)
    for annotation in content.annotations:
        captions[annotation.image_id].append(annotation.caption)
    unknown = captions.keys() - {image.id for image in content.images}
    if unknown:
        raise ValueError(f"{path}: expected captions of its images, got image_id {min(unknown)}")
    records = [
        {
            "path": os.path.join(config.images, image.file_name),
            "captions": captions.get(image.id, []),
        }
        for image in content.images
    ]
    first = check_held_out(config.held_out, len(records), config.annotations)
    return TableShards(config.annotations, records[first:] if held_out else records[:first])


class COCOCaptionParser:
    """``<image>caption<|endofchunk|>`` with a random one of the image's captions."""

    def __init__(self, config: COCOCaptionsSourceConfig) -> None:
        self.config = config

    def __call__(
        self, record: Record, generator: np.random.Generator
    ) -> InterleavedSequence | Dropped:
        captions = record["captions"]
        if not captions:
            return NO_CAPTION
        caption = captions[int(generator.integers(len(captions)))]
        return captioned(Media((image_at(record["path"]),)), caption, self.config)
