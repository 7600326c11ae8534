"""Scores against shots, a line an arm, with published numbers beside them.

Not :func:`flamingo.plots.plot_shots`, whose lines are the conditions and baselines of one run: here
styles are those of arms, and the text-only "0-shot" has a place of its own, left of a true 0-shot,
for that is what published models are asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flamingo.choices import Condition, Metric
from flamingo.naming import Column, column_title, naming, shot_column
from flamingo.plots.style import (
    BLACK,
    COLUMNS,
    DASHES,
    GREY,
    MARKERS,
    Line,
    arm_line,
    panels,
    style,
    tidy,
)

Row = Mapping[str, Any]


def plot_arms(
    benchmarks: Sequence[Row], rows: Sequence[Row], *, published: Sequence[str] = ()
) -> Figure:
    """Scores against shots with 95 % intervals, a panel a benchmark, each in its own metric.

    ``benchmarks``: ``name``, ``title``, ``unit`` and ``metric`` of each. ``rows``: the records of
    :func:`flamingo.comparison.tables.shot_table`; one with a ``source`` is a published model's,
    drawn thin, in grey or black, without an interval. ``published`` names models in the order of
    their styles, so that one looks alike beside any benchmark; others come after.
    """
    labels = list(dict.fromkeys(row["arm"] for row in rows if not row["source"]))
    models = list(dict.fromkeys(row["arm"] for row in rows if row["source"]))
    arms = {label: arm_line(i) for i, label in enumerate(labels)}
    known = dict.fromkeys([*published, *models])
    printed = {model: published_line(i) for i, model in enumerate(known)}
    figure, axes = panels(len(benchmarks), least_width=5.2, legend_height=1.0)
    figure.set_layout_engine("constrained", h_pad=0.12)
    for panel, benchmark in zip(axes, benchmarks, strict=True):
        own = [row for row in rows if row["benchmark"] == benchmark["name"]]
        _panel(panel, benchmark, own, arms, printed)
    handles = [
        *(Line2D([], [], **style(arms[label]), label=label) for label in labels),
        *(Line2D([], [], **style(printed[m]), label=f"{m} (published)") for m in models),
    ]
    across = max(1, min(COLUMNS, len(benchmarks)))
    longest = max(map(len, [*labels, *models]), default=0)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(across + 1, 2 if longest > 30 else 4),
        frameon=False,
        fontsize=8,
    )
    return figure


def published_line(index: int) -> Line:
    """The style of the ``index``-th published model: thin, grey or black."""
    return Line(
        GREY if index % 2 else BLACK,
        MARKERS[::-1][index % len(MARKERS)],
        DASHES[1 + index % 4],
        0.8,
    )


def _panel(
    panel: Axes,
    benchmark: Row,
    rows: Sequence[Row],
    arms: Mapping[str, Line],
    printed: Mapping[str, Line],
) -> None:
    columns = sorted({_column(row) for row in rows})
    x = {place: i for i, place in enumerate(columns)}
    for model in dict.fromkeys(row["arm"] for row in rows if row["source"]):
        for part in _parts([row for row in rows if row["source"] and row["arm"] == model]):
            y = [100 * row["mean"] for row in part]
            panel.plot([x[_column(r)] for r in part], y, **style(printed[model]), alpha=0.75)
    labels = list(dict.fromkeys(row["arm"] for row in rows if not row["source"]))
    for order, label in enumerate(reversed(labels)):
        # Neighbouring arms are moved apart a little, so that their intervals can be told.
        shift = 0.06 * ((len(labels) - 1) / 2 - order)
        for part in _parts([row for row in rows if not row["source"] and row["arm"] == label]):
            y = [100 * row["mean"] for row in part]
            below = [max(0.0, 100 * (row["mean"] - row["low"])) for row in part]
            above = [max(0.0, 100 * (row["high"] - row["mean"])) for row in part]
            spots = [x[_column(row)] + shift for row in part]
            panel.errorbar(spots, y, yerr=(below, above), capsize=2.5, **style(arms[label]))
    metric = Metric(benchmark["metric"])
    panel.set_title(benchmark["title"], fontsize=10, fontweight="bold", loc="left")
    panel.set_xlabel(f"shots ({benchmark['unit']})", fontsize=9)
    panel.set_ylabel(naming(metric).scale, fontsize=9)
    panel.set_xticks(range(len(columns)), [column_title(c).replace(" ", "\n") for c in columns])
    panel.set_xlim(-0.4, len(columns) - 0.6)
    if metric is not Metric.roc_auc:
        panel.set_ylim(bottom=0)
    tidy(panel)


def _column(row: Row) -> Column:
    return shot_column(Condition(row["condition"]), row["shots"])


def _parts(rows: Sequence[Row]) -> list[list[Row]]:
    """In the order of shots; the text-only "0-shot" and the others are not joined by a line."""
    ordered = sorted(rows, key=_column)
    text_only, shown = ([row for row in ordered if _column(row)[0] == kind] for kind in (0, 1))
    return [part for part in (text_only, shown) if part]
