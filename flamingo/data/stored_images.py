"""References to images as records hold them: bytes, base64, paths."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from functools import partial
from stat import S_ISREG
from typing import Any

from PIL import Image

from flamingo.data.shard_files import open_file, says_of_file
from flamingo.images import open_image
from flamingo.types import ImageRef


def stored_image(key: str, value: Any) -> ImageRef | None:
    """The image that ``value`` is: its file's bytes, its path, or (as ``datasets`` stores it)
    ``{"bytes": ..., "path": ...}``. None if it is none of these, or empty.

    ``key`` names bytes; a file is named by its path. Opening raises ``OSError`` or ``ValueError``
    for what is no good image, and refuses decompression bombs (:func:`flamingo.images.open_image`).
    """
    match value:
        case bytes() if value:
            return ImageRef(key, partial(open_image, value, key))
        case str() if value:
            return image_at(value)
        case Mapping():
            data = value.get("bytes")
            return stored_image(key, data if data is not None else value.get("path"))
        case _:
            return None


def image_at(path: str) -> ImageRef:
    """The image at ``path``, which may be of any file system (``s3://...``)."""
    return ImageRef(path, partial(_open_remote if "://" in path else open_image, path))


def image_below(folder: str, name: str, at_least: int = 0) -> ImageRef | None:
    """The image file ``name`` of a local folder; None if there is none of ``at_least`` bytes.

    Raises ``OSError`` where the disk or network fails, which says nothing of the image.
    """
    path = os.path.join(folder, name)
    try:
        found = os.stat(path)
    except ValueError:  # no name of a file
        return None
    except OSError as error:
        if says_of_file(error):
            return None
        raise
    return image_at(path) if S_ISREG(found.st_mode) and found.st_size >= at_least else None


def base64_image(key: str, text: str) -> ImageRef:
    """An image as base64, decoded as it is opened; what is no base64 raises ``ValueError`` then."""
    return ImageRef(key, partial(_open_base64, text, key))


def _open_base64(text: str, name: str) -> Image.Image:
    try:
        data = base64.b64decode(text)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: expected base64; {error}") from error
    return open_image(data, name)


def _open_remote(path: str) -> Image.Image:
    with open_file(path) as file:
        return open_image(file.read(), path)
