"""Scores against shots: a run with its controls and baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from flamingo.choices import Condition, Metric
from flamingo.naming import ALL, CONDITION_LABELS, naming
from flamingo.plots.style import COLUMNS, LINES, panels, style, tidy

Row = Mapping[str, Any]


def plot_shots(results: Mapping[str, Any]) -> Figure:
    """Scores against shots, a panel a benchmark: the model, its controls, the baselines.

    Each panel in its benchmark's own metric, times 100. Bars are 95 % intervals clustered by image;
    of the baselines, the centroid alone has them. ``results`` is the content of ``results.json``.
    """
    benchmarks = [b for b in results["benchmarks"] if _rows(results, b["name"], "real")]
    figure, axes = panels(len(benchmarks))
    for panel, benchmark in zip(axes, benchmarks, strict=True):
        _panel(panel, results, benchmark)
    drawn = [c for c in LINES if any(_rows(results, b["name"], c) for b in benchmarks)]
    handles = [
        Line2D([], [], **style(LINES[condition]), label=CONDITION_LABELS[condition])
        for condition in drawn
    ]
    across = max(1, min(COLUMNS, len(benchmarks)))
    figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False)
    return figure


def _rows(results: Mapping[str, Any], benchmark: str, condition: str) -> list[Row]:
    rows = [
        row
        for row in (*results["model"], *results["baselines"])
        if (row["benchmark"], row["condition"], row["group"]) == (benchmark, condition, ALL)
        and row["mean"] is not None
    ]
    return sorted(rows, key=lambda row: row["shots"])


def _panel(panel: Axes, results: Mapping[str, Any], benchmark: Row) -> None:
    shots = [row["shots"] for row in _rows(results, benchmark["name"], "real")]
    for condition, line in reversed(LINES.items()):  # the model on top
        rows = _rows(results, benchmark["name"], condition)
        if not rows:
            continue
        x = [shots.index(row["shots"]) for row in rows]
        y = [row["mean"] for row in rows]
        if condition in Condition.__members__ or condition == "centroid":
            # No interval: a single image, or nothing varies.
            below = [y[i] - (y[i] if r["low"] is None else r["low"]) for i, r in enumerate(rows)]
            above = [(y[i] if r["high"] is None else r["high"]) - y[i] for i, r in enumerate(rows)]
            panel.errorbar(x, y, yerr=(below, above), capsize=2.5, **style(line))
        else:
            panel.plot(x, y, **style(line))
    words = naming(Metric(benchmark["metric"]))
    panel.set_title(benchmark["title"], fontsize=10, fontweight="bold", loc="left")
    panel.set_xlabel(f"shots ({benchmark['unit']})", fontsize=9)
    panel.set_xticks(range(len(shots)), [str(count) for count in shots])
    panel.set_xlim(-0.3, len(shots) - 0.7)
    panel.set_ylabel(words.scale, fontsize=9)
    panel.set_ylim(0, 1.02 if words.share else None)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 3):g}"))
    tidy(panel)
