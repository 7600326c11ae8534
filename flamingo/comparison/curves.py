"""Shot curves of all arms, a panel a benchmark, with published numbers beside them.

Colours and style are those of :mod:`flamingo.plots.style`: arms in Okabe and Ito's colours,
each with a marker and dash of its own; published models in grey and black, thin, without intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flamingo.choices import Metric
from flamingo.comparison.arms import Facts
from flamingo.comparison.estimates import Measured
from flamingo.comparison.published import Published, beside
from flamingo.comparison.tables import Column, column, column_title, place_of
from flamingo.naming import ALL, naming
from flamingo.plots.style import (
    BLACK,
    COLUMNS,
    DASHES,
    GREY,
    MARKERS,
    PANEL_INCHES,
    Line,
    arm_line,
    style,
    tidy,
)


def plot_curves(
    benchmarks: Sequence[Facts], numbers: Sequence[Measured], published: Sequence[Published]
) -> Figure:
    """The metric against shots with 95 % intervals; the text-only "0-shot" stands apart, left."""
    own = [number for number in numbers if number.group == ALL]
    labels = list(dict.fromkeys(number.sample.arm.label for number in own))
    styles = {label: arm_line(i) for i, label in enumerate(labels)}
    names = list(dict.fromkeys(row.model for row in published))
    printed = {name: published_line(i) for i, name in enumerate(names)}
    across = max(1, min(COLUMNS, len(benchmarks)))
    down = max(1, -(-len(benchmarks) // across))
    drawn: dict[str, Line] = {}
    figure = Figure(
        figsize=(max(5.2, PANEL_INCHES * across + 0.6), PANEL_INCHES * down + 1.0),
        layout="constrained",
    )
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(h_pad=0.12)  # type: ignore[call-arg]
    axes = figure.subplots(down, across, squeeze=False)
    for panel in axes.flat[len(benchmarks) :]:
        panel.set_axis_off()
    for panel, facts in zip(axes.flat, benchmarks, strict=False):
        mine = [number for number in own if number.sample.facts.name == facts.name]
        theirs = beside(published, facts.name, facts.metric)
        _panel(panel, facts, mine, theirs, styles, printed)
        drawn |= {label: styles[label] for label in labels if label not in drawn}
        drawn |= {name: printed[name] for name in theirs}
    handles = [
        Line2D([], [], **style(line), label=name if name in styles else f"{name} (published)")
        for name, line in drawn.items()
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(across + 1, 2 if max(map(len, drawn), default=0) > 30 else 4),
        frameon=False,
        fontsize=8,
    )
    return figure


def published_line(index: int) -> Line:
    """Thin, grey or black."""
    return Line(
        GREY if index % 2 else BLACK,
        MARKERS[::-1][index % len(MARKERS)],
        DASHES[1 + index % 4],
        0.8,
    )


def _panel(
    panel: Axes,
    facts: Facts,
    numbers: Sequence[Measured],
    published: dict[str, list[Published]],
    styles: dict[str, Line],
    printed: dict[str, Line],
) -> None:
    places = {(m.sample.arm.label, place_of(m)): m for m in numbers}
    columns = sorted(
        {place for _, place in places}
        | {column(row.condition, row.shots) for rows in published.values() for row in rows}
    )
    x = {place: i for i, place in enumerate(columns)}
    for name, rows in published.items():
        points = {column(row.condition, row.shots): 100 * row.value for row in rows}
        for part in _parts(sorted(points)):
            y = [points[place] for place in part]
            panel.plot([x[place] for place in part], y, **style(printed[name]), alpha=0.75)
    labels = list(dict.fromkeys(label for label, _ in places))
    for order, label in enumerate(reversed(labels)):
        # Neighbouring arms are moved apart a little, so that their intervals can be told.
        shift = 0.06 * ((len(labels) - 1) / 2 - order)
        own = {place: number for (name, place), number in places.items() if name == label}
        for part in _parts(sorted(own)):
            y = [100 * own[place].mean for place in part]
            below = [max(0.0, 100 * (own[p].mean - own[p].low)) for p in part]
            above = [max(0.0, 100 * (own[p].high - own[p].mean)) for p in part]
            spots = [x[place] + shift for place in part]
            panel.errorbar(spots, y, yerr=(below, above), capsize=2.5, **style(styles[label]))
    panel.set_title(facts.title, fontsize=10, fontweight="bold", loc="left")
    panel.set_xlabel(f"shots ({facts.unit})", fontsize=9)
    panel.set_ylabel(naming(facts.metric).scale, fontsize=9)
    panel.set_xticks(range(len(columns)), [_tick(place) for place in columns])
    panel.set_xlim(-0.4, len(columns) - 0.6)
    if facts.metric is not Metric.roc_auc:
        panel.set_ylim(bottom=0)
    tidy(panel)


def _parts(places: Sequence[Column]) -> list[list[Column]]:
    """The text-only "0-shot" and the others are not joined by a line."""
    parts = [[p for p in places if p[0] == kind] for kind in (0, 1)]
    return [part for part in parts if part]


def _tick(place: Column) -> str:
    return column_title(place).replace(" ", "\n")
