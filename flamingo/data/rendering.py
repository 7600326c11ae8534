"""Random views of an emoji: the same concept on another background, at another size and place."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

CANVAS = 160
"""Side of a view in pixels: an emoji is 72 px, more would only be interpolation."""
MIN_SIDE, MAX_SIDE = 80, 130
"""Side of the emoji on the canvas, before rotation."""
MAX_ROTATION = 15.0
"""Degrees, to either side."""
VERSION = 1
"""Enters every seed: a change of the rendering must change it, and with it every key."""


def view_key(emoji: str, view: int) -> str:
    """The key of :func:`render_view`'s image, such as ``twemoji-v1/1f600/2``."""
    return f"twemoji-v{VERSION}/{emoji}/{view}"


def render_view(path: Path, view: int) -> Image.Image:
    """View number ``view`` of the emoji at ``path``, an RGB image of ``CANVAS`` px squared.

    Background colour, size, place, a small rotation and mirroring are drawn by a generator seeded
    with the file's name and ``view`` alone. Raises ``FileNotFoundError`` or ``ValueError``, naming
    the file, if there is no readable image.
    """
    return compose(_open_with_alpha(path), np.random.default_rng(_seed(path.stem, view)))


def compose(emoji: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Put ``emoji`` (RGBA) on a canvas, with everything about it drawn from ``generator``."""
    background = tuple(int(value) for value in generator.integers(64, 256, size=3))
    side = int(generator.integers(MIN_SIDE, MAX_SIDE + 1))
    angle = float(generator.uniform(-MAX_ROTATION, MAX_ROTATION))
    mirrored = bool(generator.integers(2))
    place = generator.uniform(size=2)

    # Pillow resizes and rotates RGBA with premultiplied alpha: no fringe from transparent pixels.
    emoji = emoji.resize((side, side), Image.Resampling.BICUBIC)
    if mirrored:
        emoji = emoji.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    emoji = emoji.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    left, top = (int(p * (CANVAS - s)) for p, s in zip(place, emoji.size, strict=True))
    canvas = Image.new("RGBA", (CANVAS, CANVAS), (*background, 255))
    canvas.alpha_composite(emoji, (max(left, 0), max(top, 0)))
    return canvas.convert("RGB")


def _seed(emoji: str, view: int) -> int:
    digest = hashlib.sha256(f"view {VERSION} {emoji} {view}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _open_with_alpha(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGBA")
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise ValueError(f"{path}: expected a readable image, got {error}") from error
