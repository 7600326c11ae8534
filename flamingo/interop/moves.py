"""What goes where when a checkpoint changes its format, as values that one can print."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flamingo.backbones.weight_files import Shape


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
