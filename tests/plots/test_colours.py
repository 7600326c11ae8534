"""Whether readers of every colour vision can tell apart what stands in one picture."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from jaxtyping import Float
from matplotlib.colors import to_rgb

from flamingo.benchmarking.plot import COLOURS as CONTENDER_COLOURS
from flamingo.benchmarking.plot import MARKERS as CONTENDER_MARKERS
from flamingo.plots.arms import published_line
from flamingo.plots.style import (
    BLACK,
    COLOURS,
    GREEN,
    GREY,
    LINES,
    PURPLE,
    Line,
    arm_line,
)

# Machado, Oliveira and Fernandes (2009), "A physiologically-based model for simulation of color
# vision deficiency", IEEE TVCG 15 (6), severity 1.0; for linear RGB.
VISIONS = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
# IEC 61966-2-1 (sRGB), white D65.
XYZ_OF_RGB = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
LEAST = 15
"""Of CIELAB: half a dozen times what is just noticed side by side, for lines stand apart."""
NEAR = {frozenset({GREY, GREEN}), frozenset({GREY, PURPLE})}
"""Pairs that are nearer than that to some: their lines differ in marker or dash."""


def seen(colour: str, vision: str) -> Float[np.ndarray, " 3"]:
    """``colour`` in CIELAB, as it looks to ``vision``."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ_OF_RGB @ (VISIONS[vision] @ linear).clip(0, 1) / XYZ_OF_RGB.sum(axis=1)
    edge = 6 / 29
    x, y, z = np.where(xyz > edge**3, np.cbrt(xyz), xyz / (3 * edge**2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(first: str, second: str, vision: str) -> float:
    return float(np.linalg.norm(seen(first, vision) - seen(second, vision)))


def alike(first: str, second: str) -> bool:
    return min(distance(first, second, vision) for vision in VISIONS) < LEAST


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_are_told_apart_by_every_colour_vision(vision: str) -> None:
    pairs = list(combinations([*COLOURS, GREY, BLACK, "white"], 2))
    near = {frozenset(pair) for pair in pairs if distance(*pair, vision) < LEAST}
    assert near <= NEAR


LINES_OF_A_PICTURE = {
    "conditions and baselines": list(LINES.values()),
    "arms and published models": [
        *(arm_line(i) for i in range(30)),
        *(published_line(i) for i in range(10)),
    ],
    "contenders": [Line(CONTENDER_COLOURS[w], CONTENDER_MARKERS[w]) for w in CONTENDER_COLOURS],
}


@pytest.mark.parametrize("lines", LINES_OF_A_PICTURE.values(), ids=LINES_OF_A_PICTURE)
def test_lines_whose_colours_are_alike_differ_in_marker_or_dash(lines: list[Line]) -> None:
    for first, second in combinations(lines, 2):
        told = (first.marker, first.dash) != (second.marker, second.dash)
        assert told or not alike(first.colour, second.colour), f"{first}, {second}"


def test_the_distance_is_that_of_cielab_and_sees_what_red_and_green_are_to_some() -> None:
    assert seen("white", "all cones") == pytest.approx([100, 0, 0], abs=0.01)
    assert seen("#ff0000", "all cones") == pytest.approx([53.24, 80.09, 67.20], abs=0.01)
    red, green = "#D05040", "#6A8535"  # equally light
    assert seen(red, "all cones")[0] == pytest.approx(seen(green, "all cones")[0], abs=1)
    assert not any(distance(red, green, v) < LEAST for v in ("all cones", "tritanopia"))
    assert alike(red, green)
    for vision in VISIONS:  # a grey stays one
        assert seen("#808080", vision)[1:] == pytest.approx([0, 0], abs=0.01)
