"""A forest plot of a sweep: each arm's difference to the reference, with its interval.

Colours are those of :mod:`flamingo.plots.style`; what they say is said by markers too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flamingo.plots.style import (
    BLACK,
    BLUE,
    COLUMNS,
    GREY,
    NO_INTERVAL,
    NOT_TOLD,
    ORANGE,
    difference_mark,
    tidy,
)

PANEL_INCHES, ROW_INCHES = 3.1, 0.34
LEAST_RANGE = 0.02
"""Of the axis to either side: differences of less look like none."""
Row = Mapping[str, Any]


def plot_forest(rows: Sequence[Row], *, reference: str) -> Figure:
    """A panel a benchmark, a line an arm: the difference in points with its 95 % interval.

    Filled and blue where Holm's p-value is below 0.05, hollow and orange otherwise (as
    :func:`flamingo.plots.plot_differences` draws them; a square has no interval); small grey dots
    are the seeds. ``rows`` are :func:`flamingo.comparison.sweep_table.tested_rows`. Raises
    ``ValueError`` without any.
    """
    if not rows:
        raise ValueError("rows: expected at least one tested difference, got none")
    benchmarks = list(dict.fromkeys(row["benchmark"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    columns = min(COLUMNS, len(benchmarks))
    lines = math.ceil(len(benchmarks) / columns)
    height = lines * (ROW_INCHES * len(arms) + 1.0) + 0.6
    figure = Figure(figsize=(PANEL_INCHES * columns + 1.2, height), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for panel in axes.flat[len(benchmarks) :]:
        panel.set_axis_off()
    for panel, benchmark in zip(axes.flat, benchmarks, strict=False):
        own = [row for row in rows if row["benchmark"] == benchmark]
        _panel(panel, own, arms)
        panel.set_title(f"{own[0]['title']}, {own[0]['shots']} shots", fontsize=9, loc="left")
        panel.set_xlabel(f"points against “{reference}”", fontsize=8)
    handles = [_marker(True, "p < 0.05 (Holm)"), _marker(False, NOT_TOLD), _seed()]
    if any(_told(row) and row["low"] is None for row in rows):
        square = Line2D([], [], linestyle="", label=NO_INTERVAL, **difference_mark(True, False))
        handles.insert(1, square)
    abreast = 3 if len(handles) == 3 else 2  # four are wider than one panel
    figure.legend(
        handles=handles, loc="outside lower center", ncols=abreast, fontsize=8, frameon=False
    )
    return figure


def _panel(panel: Axes, rows: Sequence[Row], arms: Sequence[str]) -> None:
    panel.axvline(0, color=BLACK, linewidth=0.8)
    widest = LEAST_RANGE
    for row in rows:
        place = arms.index(row["arm"])
        value, low, high = (row[key] for key in ("difference", "low", "high"))
        told = _told(row)
        colour = BLUE if told else ORANGE
        if low is not None:
            panel.plot([low, high], [place, place], color=colour, linewidth=1.8, zorder=2)
            widest = max(widest, abs(low), abs(high))
        seeds = row["by_seed"]
        panel.plot(seeds, [place + 0.2] * len(seeds), ".", color=GREY, markersize=4, zorder=3)
        panel.plot([value], [place], zorder=4, **difference_mark(told, low is not None))
        widest = max([widest, abs(value), *map(abs, seeds)])
    panel.set_yticks(range(len(arms)), arms)
    panel.set_ylim(len(arms) - 0.5, -0.5)
    panel.set_xlim(-1.05 * widest, 1.05 * widest)
    panel.xaxis.set_major_formatter(
        lambda value, _: f"{round(100 * value, 3):+g}" if value else "0"
    )
    tidy(panel)
    panel.grid(visible=False, axis="y")
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)


def _told(row: Row) -> bool:
    return row["p_holm"] is not None and row["p_holm"] < 0.05


def _marker(told: bool, label: str) -> Line2D:
    return Line2D([], [], linestyle="-", linewidth=1.8, label=label, **difference_mark(told))


def _seed() -> Line2D:
    return Line2D([], [], linestyle="", marker=".", color=GREY, markersize=5, label="a seed")
