"""Arms side by side: curves with intervals, and differences with theirs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from flamingo.plots.style import (
    BLACK,
    NO_INTERVAL,
    NOT_TOLD,
    arm_line,
    difference_mark,
    panels,
    style,
    tidy,
)

ENOUGH_IMAGES = 6
"""That all differ alike is told from chance by this many: p of the sign-flip test, 2 / 2^6, is
below 0.05."""
ALMOST_ZERO = 1e-9


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
    """A line for each row of a table with ``mean``, ``low``, ``high``, ``clusters``, top to bottom.

    Filled and blue where the interval leaves out 0, hollow and orange where it does not. Where all
    differences are equal there is no interval: a filled square, if they are not 0 and of at least
    :data:`ENOUGH_IMAGES` clusters. Raises ``ValueError`` naming the columns that are missing.
    """
    _need(rows, [label, "mean", "low", "high", "clusters"])
    longest = max((len(str(name)) for name in rows[label]), default=0)
    figure = Figure(
        figsize=(3.4 + 0.075 * longest, 0.3 * max(2, len(rows)) + 1.4), layout="constrained"
    )
    panel = figure.subplots()
    panel.axvline(0, color=BLACK, linewidth=0.8)
    # None, as JSON has it, is NaN as well.
    numbers = rows[["mean", "low", "high", "clusters"]].astype(float).to_numpy()
    drawn = {}
    for place, (mean, low, high, clusters) in enumerate(numbers.tolist()):
        known = low == low and high == high
        if known:
            told = low > 0 or high < 0
        else:
            told = abs(mean) > ALMOST_ZERO and clusters >= ENOUGH_IMAGES
        drawn[told, known or not told] = panel.errorbar(
            [mean],
            [place],
            xerr=[[mean - low], [high - mean]] if known else None,
            capsize=3,
            linestyle="none",
            **difference_mark(told, known),
        )
    panel.set_yticks(range(len(rows)), [str(name) for name in rows[label]], fontsize=9)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlabel(xlabel, fontsize=9)
    tidy(panel)
    panel.grid(axis="y", visible=False)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    looks = {
        (True, True): "interval leaves out 0",
        (True, False): NO_INTERVAL,
        (False, True): NOT_TOLD,
    }
    shown = [look for look in looks if look in drawn]
    figure.legend(
        handles=[drawn[look] for look in shown],
        labels=[looks[look] for look in shown],
        loc="outside lower center",
        ncols=2,
        fontsize=8,
        frameon=False,
    )
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
