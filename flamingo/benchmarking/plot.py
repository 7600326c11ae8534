"""The results as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from flamingo.benchmarking.contender import Who
from flamingo.benchmarking.numbers import Spread
from flamingo.benchmarking.results import CaseResult
from flamingo.benchmarking.table import duration
from flamingo.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE

COLOURS = {
    Who.bare: GREY,
    Who.ours: BLUE,
    Who.open_flamingo: ORANGE,
    Who.flamingo_pytorch: GREEN,
    Who.idefics: PURPLE,
}
MARKERS = {
    Who.bare: "s",
    Who.ours: "o",
    Who.open_flamingo: "v",
    Who.flamingo_pytorch: "^",
    Who.idefics: "D",
}
"""For print, beside the colours (Okabe and Ito's)."""
LINE, GAP = 0.2, 0.16
"""Inches of a contender, and between two cases."""


def plot(results: Sequence[CaseResult], path: Path) -> None:
    """A line a contender: median, quartiles, and the median in figures; seconds by logarithm."""
    height = sum(LINE * len(_taking_part(result)) + GAP for result in results)
    figure = Figure(figsize=(8, height + 1))
    axes = figure.add_subplot()
    place, ticks, legend = 0.0, [], {}
    for result in results:
        first = place
        for who, spread in _taking_part(result).items():
            legend[who.value] = axes.errorbar(
                spread.median,
                place,
                xerr=[[spread.median - spread.lower], [spread.upper - spread.median]],
                color=COLOURS[who],
                marker=MARKERS[who],
                linestyle="none",
            )
            axes.annotate(
                duration(spread.median),
                (spread.upper, place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
            place += LINE
        ticks.append(((first + place - LINE) / 2, result.case.value))
        place += GAP
        axes.axhline(place - (LINE + GAP) / 2, color=GREY, linewidth=0.3)
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    axes.set_ylim(place - GAP, -LINE)
    axes.set_xscale("log")
    axes.set_xlabel("seconds (median and quartiles)")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        list(legend.values()),
        list(legend),
        fontsize=8,
        frameon=False,
        ncols=len(legend),
        loc="lower center",
        bbox_to_anchor=(0.4, 1.0),
    )
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _taking_part(result: CaseResult) -> dict[Who, Spread]:
    measured = {who: result.measured.get(who.value) for who in Who}
    return {who: Spread.of(own.seconds) for who, own in measured.items() if own is not None}
