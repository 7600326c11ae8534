"""What goes where when a checkpoint changes its format, as values that one can print."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

Shape = tuple[int, ...]


class Part(Enum):
    """Which part of our model a tensor ends in."""

    trained = "trained"
    """What trains: the target is a name of ``trainable_parameters()``."""
    language_model = "language model"
    vision_encoder = "vision encoder"
    """For both backbones the target is a name in transformers' own model."""
    derived = "derived"
    """Nowhere: a table that the model computes by itself."""
    copy = "copy"
    """Nowhere: the same tensor as the target, under another name."""
    unused = "unused"
    """Nowhere: the backbone that was given has its own."""


class How(Enum):
    """What becomes of the source tensors."""

    unchanged = "unchanged"
    stacked = "stacked"
    """One below the other, in the order of ``source`` (keys, then values)."""
    flattened = "flattened"
    """Dimensions of size one dropped."""
    rows = "rows of new tokens"
    """Of a whole embedding, those of the new tokens."""


@dataclass(frozen=True)
class Move:
    """Tensors of a checkpoint, and the one of ours that they become."""

    source: tuple[str, ...]
    target: str
    part: Part
    how: How
    shape: Shape
    """Of the target."""


def check_shapes(
    source: str,
    expected: Mapping[str, Shape],
    actual: Mapping[str, Shape],
    *,
    optional: Collection[str] = (),
) -> None:
    """Raise ``ValueError`` listing keys that are missing, left over or of another shape."""
    missing = sorted(set(expected) - set(actual) - set(optional))
    left_over = sorted(set(actual) - set(expected))
    reshaped = [
        f"{key}: expected {expected[key]}, got {actual[key]}"
        for key in sorted(set(expected) & set(actual))
        if expected[key] != actual[key]
    ]
    if missing or left_over or reshaped:
        raise ValueError(
            f"{source}: missing {missing}, left over {left_over}, of another shape {reshaped}"
        )
