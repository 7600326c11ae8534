"""Opening images that a user brings, with an error that names the file where one is no good."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from flamingo.types import ImageRef

MAX_PIXELS = 89_000_000
"""Above this Pillow itself warns of a decompression bomb; a photograph has at most about 60 M."""
MAX_ASPECT_RATIO = 100


def _blank_image() -> Image.Image:
    return Image.new("RGB", (64, 64), (128, 128, 128))


BLANK = ImageRef("blank/grey128", _blank_image)
"""A uniform grey image: no information."""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        text = str(path)
        raise ValueError(  # base64, say
            f"{text[:40]}...: expected the path of an image, got {len(text):,} characters"
        ) from error


def open_image(
    source: str | Path | bytes,
    name: str | None = None,
    *,
    formats: tuple[str, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Read an image file, or its bytes, as RGB, upright (EXIF) and transparency on white.

    ``name`` is what errors call it; default: the path. Of an animation the first frame is taken.
    ``formats`` are the only ones that are tried, as Pillow names them; default: all it knows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an image, damaged or truncated, of absurd size or proportions, or with
            pixels that are neither 8 nor 16 bits deep.
    """
    if isinstance(source, bytes):
        name, data = name or "image", source
    else:
        name, path = name or str(source), Path(source)
        if not _exists(path):
            raise FileNotFoundError(f"{name}: no such image file")
        if not path.is_file():
            raise ValueError(f"{name}: expected an image file, got a directory")
        data = path.read_bytes()
    if not data:
        raise ValueError(f"{name}: expected an image, got an empty file")
    # Damaged files make the decoders of Pillow raise nearly anything, SyntaxError and struct.error
    # among it, so everything that comes out of Pillow is caught and named.
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: expected at most {max_pixels:,} pixels; {error}") from error
    except Exception as error:
        wanted = f"an image ({', '.join(formats)})" if formats else "an image"
        raise ValueError(
            f"{name}: expected {wanted}, got {len(data):,} bytes that no decoder knows"
        ) from error
    _check_size(image, name, max_pixels)
    try:
        image.load()
        return _upright_rgb(image)
    except Exception as error:
        raise ValueError(f"{name}: damaged or truncated {image.format} image ({error})") from error


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    """From the header alone, before memory for the pixels is taken."""
    width, height = image.size
    if min(width, height) < 1 or width * height > max_pixels:
        raise ValueError(
            f"{name}: expected between 1 and {max_pixels:,} pixels, got {width} x {height}"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(
            f"{name}: expected sides within a ratio of {MAX_ASPECT_RATIO}, got {width} x {height}"
        )
    _check_depth(image, name)


def as_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """An image that was opened elsewhere as :func:`open_image` gives it; the same again if it is.

    Upright (EXIF), transparency on white, 16 bits scaled to 8; the caller's image stays as it is.
    ``name`` is what errors call it. Raises ``ValueError`` for pixels that are neither 8 nor 16 bits
    deep (modes "I" and "F", whose range is not known).
    """
    _check_depth(image, name)
    return _upright_rgb(image)


def _check_depth(image: Image.Image, name: str) -> None:
    if image.mode in ("I", "F"):
        raise ValueError(f"{name}: expected 8 or 16 bits a channel, got mode {image.mode!r}")


def _upright_rgb(image: Image.Image) -> Image.Image:
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255 instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
