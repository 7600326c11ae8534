"""Small data sets in their published formats, and what the tests of their readers share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flamingo.evaluation.benchmarks.examples import Example
from flamingo.types import ImageRef

DATA = Path(__file__).resolve().parents[2] / "data" / "benchmarks"
RED, GREEN, BLUE, YELLOW = "red", "green", "blue", "yellow"
"""Each fixture image is of one colour, so that a test sees which file was opened."""


def ref(key: str) -> ImageRef:
    """An image to compare with: references are equal if their keys are."""

    def fail():
        raise AssertionError("the expected image is not to be opened")

    return ImageRef(key, fail)


def colour(example: Example, place: int = 0) -> str:
    """The colour of an example's image, which is opened."""
    image = example.images[place].open()
    assert image.mode == "RGB"
    bright = tuple(value > 127 for value in image.getpixel((4, 4)))
    return {
        (True, False, False): RED,
        (False, True, False): GREEN,
        (False, False, True): BLUE,
        (True, True, False): YELLOW,
    }[bright]


def edited(source: Path, target: Path, edit: Callable[[Any], Any]) -> Path:
    """A copy of a JSON file with ``edit`` done to its content in place."""
    content = json.loads(source.read_text())
    edit(content)
    target.write_text(json.dumps(content))
    return target
