"""Figures of the report: scores against shots, loss and gates over training.

Colours are those of Okabe and Ito, which stay apart under every colour blindness; every line also
has a marker or dash of its own, for print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, StrMethodFormatter

from flamingo.choices import Condition, Metric
from flamingo.evaluation.metrics.naming import naming
from flamingo.evaluation.points import ALL, Row
from flamingo.evaluation.tables import CONDITION_LABELS

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
GATE_MARGIN = 0.08
"""Room above and below the gates, as a share of their range."""


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
    # A colour says what is changed (query image, demonstration images, their text), a marker how.
    "blank_demonstrations": Line(PURPLE, "s", "--"),
    "swap_query": Line(ORANGE, "X", "-."),
    "swap_demonstrations": Line(PURPLE, "X", "-."),
    "drop_query": Line(ORANGE, "+", ":"),
    "drop_demonstrations": Line(PURPLE, "+", ":"),
    "blur_query": Line(ORANGE, "p", (0, (3, 1, 1, 1))),
    "blur_demonstrations": Line(PURPLE, "p", (0, (3, 1, 1, 1))),
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


def plot_shots(results: Mapping[str, Any]) -> Figure:
    """Scores against shots, a panel a benchmark: the model, its controls, the baselines.

    Each panel in its benchmark's own metric, times 100. Bars are 95 % intervals clustered by image.
    ``results`` is the content of ``results.json``.
    """
    benchmarks = [b for b in results["benchmarks"] if _rows(results, b["name"], "real")]
    columns = max(1, min(COLUMNS, len(benchmarks)))
    lines = max(1, -(-len(benchmarks) // columns))
    figure = Figure(
        figsize=(PANEL_INCHES * columns + 0.6, PANEL_INCHES * lines + 0.9), layout="constrained"
    )
    axes = figure.subplots(lines, columns, squeeze=False)
    for panel in axes.flat[len(benchmarks) :]:
        panel.set_axis_off()
    for panel, benchmark in zip(axes.flat, benchmarks, strict=False):
        _panel(panel, results, benchmark)
    drawn = [c for c in LINES if any(_rows(results, b["name"], c) for b in benchmarks)]
    handles = [
        Line2D([], [], **style(LINES[condition]), label=CONDITION_LABELS[condition])
        for condition in drawn
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
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
            # No interval: a single image.
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
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
    tidy(panel)


def style(line: Line) -> dict[str, Any]:
    """A line as matplotlib's arguments; a thin one has small markers."""
    return {
        "color": line.colour,
        "marker": line.marker,
        "linestyle": line.dash,
        "linewidth": line.width,
        "markersize": 5 if line.width >= 1 else 4,
    }


def tidy(panel: Axes) -> None:
    """Nothing drawn that carries nothing."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=9)


def plot_loss(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Training loss (all, and by source) and validation loss against the step.

    The axis is logarithmic: sources and phases differ by orders of magnitude. A loss of exactly 0
    has no place on it and leaves a gap.
    """
    figure = Figure(figsize=(5.4, 3.7), layout="constrained")
    panel = figure.subplots()
    names = sorted({name for entry in metrics for name in entry if "loss" in name})
    colours = [BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, GREY]
    for name, colour in zip(names, colours * len(names), strict=False):
        points = [(entry["step"], entry[name]) for entry in metrics if name in entry]
        total = name == "train/loss"
        validation = not name.startswith("train/")
        panel.plot(
            *zip(*points, strict=True),
            color=BLACK if total else colour,
            linewidth=2.0 if total else 1.2,
            linestyle="--" if validation else "-",
            marker="o" if validation else "",
            markersize=4,
            label=name,
        )
    panel.set_xlabel("step", fontsize=9)
    panel.set_ylabel("loss, nats a learned token", fontsize=9)
    panel.set_yscale("log", nonpositive="mask")
    plain = StrMethodFormatter("{x:g}")
    low, high = panel.get_ylim()
    panel.yaxis.set_major_formatter(plain)
    panel.yaxis.set_minor_formatter(plain if high / low < 20 else NullFormatter())
    tidy(panel)
    panel.tick_params(which="minor", labelsize=8)
    if names:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def plot_gates(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """tanh of every gate against the step; solid for attention, dashed for feed-forward.

    The axis spans the values with a margin: gates move little from where they start.
    """
    figure = Figure(figsize=(5.4, 3.7), layout="constrained")
    panel = figure.subplots()
    names = list(dict.fromkeys(n for entry in metrics for n in entry if n.startswith("gate/")))
    layers = list(dict.fromkeys(name.split("/")[1] for name in names))
    ramp = _ramp(len(layers))
    for name in names:
        _, layer, branch = name.split("/")
        points = [(entry["step"], entry[name]) for entry in metrics if name in entry]
        panel.plot(
            *zip(*points, strict=True),
            color=ramp[layers.index(layer)],
            linestyle="-" if branch == "attention" else "--",
            linewidth=1.4,
            label=layer.replace("_", " ") if branch == "attention" else None,
        )
    panel.margins(y=GATE_MARGIN)
    values = [entry[name] for entry in metrics for name in names if name in entry]
    if values and min(values) <= 0 <= max(values):  # closed; elsewhere it would widen the axis
        panel.axhline(0, color=BLACK, linewidth=0.6)
    panel.set_xlabel("step", fontsize=9)
    panel.set_ylabel("tanh(gate)", fontsize=9)
    tidy(panel)
    if names:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _ramp(count: int) -> list[Any]:
    """Dark to light, the same order in grey: early layers are dark."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * i / max(1, count - 1)) for i in range(count)]
