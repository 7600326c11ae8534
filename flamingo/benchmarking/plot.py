"""The results as a figure: every contender's time relative to the bare LM's, or to ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from flamingo.benchmarking.contender import Who
from flamingo.benchmarking.numbers import Spread
from flamingo.benchmarking.results import CaseResult
from flamingo.benchmarking.table import duration
from flamingo.evaluation.plots import BLUE, GREEN, GREY, ORANGE, PURPLE

COLOURS = {
    Who.bare: GREY,
    Who.ours: BLUE,
    Who.open_flamingo: ORANGE,
    Who.flamingo_pytorch: GREEN,
    Who.idefics: PURPLE,
}
HATCHES = {
    Who.bare: "",
    Who.ours: "",
    Who.open_flamingo: "///",
    Who.flamingo_pytorch: "...",
    Who.idefics: "xxx",
}
"""For print, beside the colours (Okabe and Ito's)."""
BAR, GAP = 0.22, 0.45


def plot(results: Sequence[CaseResult], path: Path) -> None:
    """A group of bars a case, by logarithm; ticks between quartiles; medians as numbers."""
    figure = Figure(figsize=(8, 0.6 + sum(_height(result) for result in results)))
    axes = figure.add_subplot()
    place, ticks = 0.0, []
    for result in results:
        first = place
        for who in Who:
            own = result.measured.get(who.value)
            if own is None:
                continue
            spread = Spread.of(own.seconds)
            axes.barh(
                place,
                spread.median,
                height=BAR,
                color=COLOURS[who],
                hatch=HATCHES[who],
                edgecolor="white",
                label=who.value,
                xerr=[[spread.median - spread.lower], [spread.upper - spread.median]],
            )
            axes.annotate(
                duration(spread.median),
                (spread.upper, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
            place += BAR
        ticks.append(((first + place - BAR) / 2, result.case.value))
        place += GAP
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("seconds (median, quartiles)")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    known = dict(zip(names, handles, strict=True))
    axes.legend(known.values(), known.keys(), fontsize=8, frameon=False, loc="best")
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _height(result: CaseResult) -> float:
    return 2 * (BAR * len(result.measured) + GAP)
