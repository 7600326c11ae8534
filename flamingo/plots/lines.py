"""Arms side by side: curves with intervals, and differences with theirs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from flamingo.plots.style import BLACK, BLUE, GREY, arm_line, panels, style, tidy


def plot_lines(
    points: pd.DataFrame,
    *,
    x: str,
    y: str = "mean",
    by: str,
    panel: str | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
) -> Figure:
    """A line for each value of column ``by``, of column ``y`` against ``x``.

    Values of ``x`` stand at even distances, in rising order, as shots do. With columns ``low`` and
    ``high`` each point has that interval (missing: none). ``panel``: a column that says which of
    several panels a row is in. Raises ``ValueError`` naming the columns that are missing.
    """
    _need(points, [x, y, by, *([panel] if panel else [])])
    titles = list(dict.fromkeys(points[panel])) if panel else [""]
    labels = list(dict.fromkeys(points[by]))
    figure, axes = panels(len(titles))
    drawn = {}
    for axis, title in zip(axes, titles, strict=True):
        own = points[points[panel] == title] if panel else points
        places = {value: i for i, value in enumerate(sorted(set(own[x])))}
        for order, label in enumerate(labels):
            line = pd.DataFrame(own[own[by] == label]).sort_values(by=x)
            if line.empty:
                continue
            # Moved apart a little, so that intervals can be told.
            shift = 0.05 * (order - (len(labels) - 1) / 2)
            spots = [places[value] + shift for value in line[x]]
            errors = _errors(line, y)
            drawn[label] = axis.errorbar(
                spots, line[y], yerr=errors, capsize=2.5, label=str(label), **style(arm_line(order))
            )
        axis.set_title(str(title), fontsize=10, fontweight="bold", loc="left")
        axis.set_xticks(range(len(places)), [f"{value}" for value in places])
        axis.set_xlabel(xlabel or x, fontsize=9)
        axis.set_ylabel(ylabel or y, fontsize=9)
        tidy(axis)
    figure.legend(
        handles=list(drawn.values()),
        labels=[str(label) for label in drawn],
        loc="outside lower center",
        ncols=min(3, max(1, len(drawn))),
        fontsize=8,
        frameon=False,
    )
    return figure


def plot_differences(
    rows: pd.DataFrame, *, label: str = "label", xlabel: str = "difference"
) -> Figure:
    """A line for each row of a table with columns ``mean``, ``low``, ``high``, top to bottom.

    Filled and blue where the interval leaves out 0, hollow and grey where it does not, or where
    there is none. Raises ``ValueError`` naming the columns that are missing.
    """
    _need(rows, [label, "mean", "low", "high"])
    longest = max((len(str(name)) for name in rows[label]), default=0)
    figure = Figure(
        figsize=(3.4 + 0.075 * longest, 0.3 * max(2, len(rows)) + 1.0), layout="constrained"
    )
    panel = figure.subplots()
    panel.axvline(0, color=BLACK, linewidth=0.8)
    # None, as JSON has it, is NaN as well.
    numbers = rows[["mean", "low", "high"]].astype(float).to_numpy()
    for place, (mean, low, high) in enumerate(numbers.tolist()):
        apart = low > 0 or high < 0
        known = low == low and high == high
        panel.errorbar(
            [mean],
            [place],
            xerr=[[mean - low], [high - mean]] if known else None,
            marker="o",
            capsize=3,
            color=BLUE if apart else GREY,
            markerfacecolor=BLUE if apart else "white",
            linestyle="none",
        )
    panel.set_yticks(range(len(rows)), [str(name) for name in rows[label]], fontsize=9)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlabel(xlabel, fontsize=9)
    tidy(panel)
    panel.grid(axis="y", visible=False)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    return figure


def _errors(line: pd.DataFrame, y: str) -> list[list[float]] | None:
    if not {"low", "high"} <= set(line.columns):
        return None
    mean = line[y].astype(float)
    below = (mean - line["low"].astype(float)).fillna(0).clip(lower=0)
    above = (line["high"].astype(float) - mean).fillna(0).clip(lower=0)
    return [below.tolist(), above.tolist()]


def _need(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in frame.columns]:
        raise ValueError(f"columns: expected {missing} too, got {list(frame.columns)}")
