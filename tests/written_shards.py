"""Shards as data sets publish them, written small."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from flamingo.data.documents import Dropped
from flamingo.types import InterleavedSequence, Media

LEARN, SEEN = True, False


def png(shade: int = 0, size: tuple[int, int] = (4, 4)) -> bytes:
    """A grey image that is told by its shade."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def json_lines(records: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def shown(made: InterleavedSequence | Dropped) -> list[Any]:
    """``(text, learned)`` of each text, and the shades of each medium's frames."""
    assert isinstance(made, InterleavedSequence), made
    return [
        [shade(frame.open()) for frame in segment.frames]
        if isinstance(segment, Media)
        else (segment.text, segment.learn)
        for segment in made.segments
    ]


def shade(image: Image.Image) -> int:
    assert image.mode == "RGB"
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple) and len(set(pixel)) == 1
    return pixel[0]
