"""Corrected p-values when many tests are made, each a pure function of the raw ones.

A corrected p-value is compared with the level itself: it is the smallest level at which the
procedure would reject that hypothesis.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np


class Correction(Enum):
    """What is held at the level over all tests together."""

    none = "none"
    """Nothing: each test has its own level."""
    holm = "holm"
    """The probability of a single false rejection, whatever the dependence (Holm 1979)."""
    benjamini_hochberg = "benjamini_hochberg"
    """The expected share of false rejections among all (Benjamini & Hochberg 1995): for independent
    or positively dependent tests, as many conditions against one control are."""


def correct(p_values: Sequence[float], correction: Correction) -> list[float]:
    """``p_values`` corrected for their number, in their order.

    Raises ``ValueError`` for a p-value outside [0, 1] or NaN.
    """
    for index, p_value in enumerate(p_values):
        if not 0 <= p_value <= 1:
            raise ValueError(f"p_values[{index}]: expected a probability, got {p_value}")
    match correction:
        case Correction.none:
            return list(p_values)
        case Correction.holm:
            return holm(p_values)
        case Correction.benjamini_hochberg:
            return benjamini_hochberg(p_values)


def holm(p_values: Sequence[float]) -> list[float]:
    """Step down: the i-th smallest of m times ``m - i + 1``, never below a smaller one's."""
    raw = np.array(p_values, dtype=float)
    order = np.argsort(raw, kind="stable")
    stepped = raw[order] * np.arange(len(raw), 0, -1)
    corrected = np.empty_like(raw)
    corrected[order] = np.minimum(1, np.maximum.accumulate(stepped))
    return corrected.tolist()


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Step up: the i-th smallest of m times ``m / i``, never above a larger one's."""
    raw = np.array(p_values, dtype=float)
    order = np.argsort(raw, kind="stable")
    stepped = raw[order] * len(raw) / np.arange(1, len(raw) + 1)
    corrected = np.empty_like(raw)
    corrected[order] = np.minimum(1, np.minimum.accumulate(stepped[::-1])[::-1])
    return corrected.tolist()
