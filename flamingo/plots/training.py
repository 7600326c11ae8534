"""How training went: loss and gates against the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from flamingo.plots.style import BLACK, MARKERS, Line, arm_line, tidy

TOTAL = "loss"
MARKS = 8
"""Of each line, about as many: enough to tell it by, few enough to see it."""
GATE_MARGIN = 0.08
"""Room above and below the gates, as a share of their range."""
Metrics = Sequence[Mapping[str, Any]] | pd.DataFrame
"""What a run logged, with its ``step``: an entry a line, or as :attr:`flamingo.runs.Run.metrics`
(indexed by step, empty where a number was not logged)."""


def plot_loss(metrics: Metrics) -> Figure:
    """Training loss (all, and by source) and validation loss against the step.

    A source has its colour and marker; solid lines are training, dashed ones validation. The axis
    is logarithmic: sources and phases differ by orders of magnitude. A loss of exactly 0 has no
    place on it and leaves a gap.
    """
    metrics = _logged(metrics)
    figure = Figure(figsize=(5.4, 3.7), layout="constrained")
    panel = figure.subplots()
    names = sorted({name for entry in metrics for name in entry if "loss" in name})
    arms = [source for source in dict.fromkeys(map(_source, names)) if source != TOTAL]
    for order, name in enumerate(names):
        points = [(entry["step"], entry[name]) for entry in metrics if name in entry]
        source = _source(name)
        total = source == TOTAL
        line = Line(BLACK, "*") if total else arm_line(arms.index(source))
        panel.plot(
            *zip(*points, strict=True),
            color=line.colour,
            linewidth=2.0 if total else 1.2,
            linestyle="-" if name.startswith("train/") else "--",
            marker=line.marker,
            markevery=_marks(len(points), order, len(names)),
            markersize=6 if total else 4,
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


def plot_gates(metrics: Metrics) -> Figure:
    """tanh of every gate against the step; solid for attention, dashed for feed-forward.

    A layer has its shade, early ones dark, and its marker (again after ten). The axis spans the
    values with a margin: gates move little from where they start.
    """
    metrics = _logged(metrics)
    figure = Figure(figsize=(5.4, 3.7), layout="constrained")
    panel = figure.subplots()
    names = list(dict.fromkeys(n for entry in metrics for n in entry if n.startswith("gate/")))
    layers = list(dict.fromkeys(name.split("/")[1] for name in names))
    ramp = _ramp(len(layers))
    for order, name in enumerate(names):
        _, layer, branch = name.split("/")
        points = [(entry["step"], entry[name]) for entry in metrics if name in entry]
        panel.plot(
            *zip(*points, strict=True),
            color=ramp[layers.index(layer)],
            marker=MARKERS[layers.index(layer) % len(MARKERS)],
            markevery=_marks(len(points), order, len(names)),
            markersize=4,
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


def _source(name: str) -> str:
    """``loss/binding`` of the training's and of the validation's; :data:`TOTAL` of all."""
    return name.removeprefix("train/").removeprefix("validation/")


def _marks(points: int, order: int, lines: int) -> tuple[int, int]:
    """Where a line has its markers, as matplotlib takes it: beside those of the other lines."""
    every = max(1, points // MARKS)
    return order * every // lines, every


def _ramp(count: int) -> list[Any]:
    """Dark to light, the same order in grey: early layers are dark."""
    return [colormaps["viridis"](0.9 * i / max(1, count - 1)) for i in range(count)]


def _logged(metrics: Metrics) -> Sequence[Mapping[str, Any]]:
    if not isinstance(metrics, pd.DataFrame):
        return metrics
    return [
        {"step": step, **{str(name): value for name, value in row.dropna().items()}}
        for step, row in metrics.iterrows()
    ]
