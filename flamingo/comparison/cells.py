"""Numbers as readers see them in tables."""

from __future__ import annotations

import math

NOTHING = "–"
"""Where there is no number."""


def percent(value: float) -> str:
    """``74.9``."""
    return NOTHING if math.isnan(value) else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """``+1.2``, ``-0.3``, ``0.0``."""
    if math.isnan(value):
        return NOTHING
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def p_value(value: float) -> str:
    """Three decimals, or less than the least of them."""
    if math.isnan(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def with_interval(mean: float, low: float, high: float) -> str:
    """``74.9 [73.1, 76.7]``; the number alone where there is no interval."""
    if math.isnan(low):
        return percent(mean)
    return f"{percent(mean)} [{percent(low)}, {percent(high)}]"


def signed_with_interval(mean: float, low: float, high: float) -> str:
    """``+1.2 [-0.3, +2.7]``; the number alone where there is no interval."""
    if math.isnan(low):
        return signed(mean)
    return f"{signed(mean)} [{signed(low)}, {signed(high)}]"


def number(value: float | None) -> float:
    """NaN for the None that JSON has instead."""
    return math.nan if value is None else value
