"""How every picture is drawn: colours, lines and frames.

Colours are those of Okabe and Ito, which stay apart under every colour blindness. Every line also
has a marker or dash of its own, for print, and for grey, which can be taken for green or purple.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)
GREY, BLACK = "#777777", "#000000"
PANEL_INCHES = 3.3
COLUMNS = 3
COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (3, 1, 1, 1)))
HATCHES = ("", *r"/// ... \\\ xxx --- ||| +++ ooo ** O //.. --oo ||..".split())
"""For bars, as dashes for lines: one for each condition, for several have one colour."""


@dataclass(frozen=True, slots=True)
class Line:
    """How a condition is drawn."""

    colour: str
    marker: str
    dash: Any = "-"
    width: float = 1.4


LINES = {
    "real": Line(BLUE, "o", "-", 2.4),
    "blank_query": Line(ORANGE, "s", "--"),
    "shuffled_answers": Line(VERMILLION, "^", ":"),
    # A colour says what is changed (query image, demonstration images, their text), a marker how;
    # dashes differ within every marker, for print.
    "blank_demonstrations": Line(PURPLE, "s", (0, (6, 1))),
    "swap_query": Line(ORANGE, "X", "-."),
    "swap_demonstrations": Line(PURPLE, "X", (0, (6, 1, 1, 1))),
    "drop_query": Line(ORANGE, "+", ":"),
    "drop_demonstrations": Line(PURPLE, "+", (0, (1, 3))),
    "blur_query": Line(ORANGE, "p", (0, (3, 1, 1, 1))),
    "blur_demonstrations": Line(PURPLE, "p", (0, (3, 1, 1, 1, 1, 1))),
    "flipped_answers": Line(VERMILLION, "v", "--"),
    "swapped_questions": Line(VERMILLION, "P", "-."),
    "reversed_order": Line(VERMILLION, "<", (0, (3, 1, 1, 1))),
    "text_only_zero_shot": Line(BLACK, "d", "--"),
    "centroid": Line(GREEN, "D", "-"),
    "prior": Line(PURPLE, "", (0, (6, 2))),
    "nearest_question": Line(GREEN, "*", (0, (1, 2))),
    "majority": Line(SKY, "v", (0, (1, 2))),
    "last": Line(GREY, "x", (0, (1, 2))),
    "chance": Line(BLACK, "", (0, (1, 1)), 1.0),
}


def arm_line(index: int) -> Line:
    """The style of the ``index``-th of some arms, runs or sources.

    Colours come again after six, dashes after five, markers after ten: none of the first thirty
    looks like another.
    """
    return Line(
        COLOURS[index % len(COLOURS)],
        MARKERS[index % len(MARKERS)],
        DASHES[index % len(DASHES)],
        2.0 if index == 0 else 1.6,
    )


def style(line: Line) -> dict[str, Any]:
    """A line as matplotlib's arguments; a thin one has small markers."""
    return {
        "color": line.colour,
        "marker": line.marker,
        "linestyle": line.dash,
        "linewidth": line.width,
        "markersize": 5 if line.width >= 1 else 4,
    }


def difference_mark(told: bool, interval: bool = True) -> dict[str, Any]:
    """A difference as matplotlib's arguments: filled and blue where it is told from none, hollow
    and orange where it is not. A square is told without an ``interval``: nothing in it varies."""
    colour = BLUE if told else ORANGE
    return {
        "color": colour,
        "marker": "s" if told and not interval else "D",
        "markersize": 5.5,
        "markerfacecolor": colour if told else "white",
    }


NOT_TOLD, NO_INTERVAL = "not told from none", "nothing varies: no interval"
"""What hollow marks and squares are called."""


def tidy(panel: Axes) -> None:
    """Nothing drawn that carries nothing."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=9)


def panels(
    count: int, *, least_width: float = 4.4, legend_height: float = 0.9
) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels, at most :data:`COLUMNS` abreast, with room for a legend."""
    columns = max(1, min(COLUMNS, count))
    lines = max(1, -(-count // columns))
    figure = Figure(
        figsize=(
            max(least_width, PANEL_INCHES * columns + 0.6),
            PANEL_INCHES * lines + legend_height,
        ),
        layout="constrained",
    )
    axes: Sequence[Axes] = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel in axes[count:]:
        panel.set_axis_off()
    return figure, list(axes[:count])
