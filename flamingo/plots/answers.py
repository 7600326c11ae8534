"""What was answered: scores by type of question, and which answers are taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from flamingo.choices import Metric
from flamingo.naming import ALL, CONDITION_LABELS, naming
from flamingo.plots.style import HATCHES, LINES, tidy

OTHER = "other"
"""Row and column of the answers that are too rare to be shown."""


def plot_groups(
    results: Mapping[str, Any],
    benchmark: str,
    *,
    shots: int,
    conditions: Sequence[str] = ("real", "blank_query"),
) -> Figure:
    """A bar for each type of query and condition with its 95 % interval; all queries on the left.

    Below each type stands how many queries its first bar is of, and in brackets the others where
    they are of fewer: controls may be asked a part. ``results`` is the content of ``results.json``.
    Raises ``ValueError`` naming the benchmarks, or the shot counts, that there are, if this one was
    not evaluated.
    """
    told = {own["name"]: own for own in results["benchmarks"]}
    if benchmark not in told:
        raise ValueError(f"benchmark: expected one of {sorted(told)}, got {benchmark!r}")
    rows = [r for r in results["model"] if r["benchmark"] == benchmark and r["mean"] is not None]
    found = {(r["condition"], r["group"]): r for r in rows if r["shots"] == shots}
    if not found:
        counts = sorted({row["shots"] for row in rows})
        raise ValueError(f"shots: expected one of {counts}, got {shots}")
    groups = [ALL, *sorted({group for _, group in found} - {ALL})]
    drawn = [name for name in conditions if any((name, group) in found for group in groups)]
    figure = Figure(figsize=(max(4.4, 1.2 * len(groups) + 1.4), 3.6), layout="constrained")
    panel = figure.subplots()
    width = 0.8 / max(1, len(drawn))
    for order, condition in enumerate(drawn):
        here = [(i, found[condition, g]) for i, g in enumerate(groups) if (condition, g) in found]
        means = [row["mean"] for _, row in here]
        bounds = [(row["low"], row["high"]) for _, row in here]
        below = [m - (m if low is None else low) for m, (low, _) in zip(means, bounds, strict=True)]
        above = [(m if top is None else top) - m for m, (_, top) in zip(means, bounds, strict=True)]
        panel.bar(
            [place + (order - (len(drawn) - 1) / 2) * width for place, _ in here],
            means,
            width,
            yerr=(below, above),
            capsize=2.5,
            color=LINES[condition].colour,
            hatch=HATCHES[order % len(HATCHES)],
            edgecolor="white",
            error_kw={"linewidth": 1},
            label=CONDITION_LABELS[condition],
        )
    words = naming(Metric(told[benchmark]["metric"]))
    sizes = [[found[name, g]["n"] for name in drawn if (name, g) in found] for g in groups]
    labels = [f"{group}\n{_sizes(own)}" for group, own in zip(groups, sizes, strict=True)]
    panel.set_xticks(range(len(groups)), labels)
    if any(len(set(own)) > 1 for own in sizes):
        panel.set_xlabel("n: queries of the first bar (of the others)", fontsize=8)
    panel.set_ylabel(words.scale, fontsize=9)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 3):g}"))
    panel.set_title(f"{told[benchmark]['title']}, {shots} shots", fontsize=10, loc="left")
    tidy(panel)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _sizes(counts: Sequence[int]) -> str:
    """``n = 250 (100)``; nothing for a group without a bar."""
    if not counts:
        return ""
    first, *others = map(str, dict.fromkeys(counts))
    return f"n = {first}" + (f" ({', '.join(others)})" if others else "")


def plot_confusion(
    targets: Sequence[str], answers: Sequence[str], *, most: int = 12, title: str = ""
) -> Figure:
    """Right answers down, given ones across; a cell has its count, its shade the share of its row.

    The ``most`` frequent answers (right or given) have a row and column of their own, the commonest
    first; all others together are the last one, "other" (a real answer may read so too). Raises
    ``ValueError`` for lists of unequal length.
    """
    if len(targets) != len(answers):
        raise ValueError(
            f"answers: expected as many as targets, {len(targets)}, got {len(answers)}"
        )
    counts = Counter([*targets, *answers])
    names = [name for name, _ in counts.most_common(most)]
    place = {name: i for i, name in enumerate(names)}
    last = len(names)
    names += [OTHER] if len(counts) > len(names) else []
    table = np.zeros((len(names), len(names)), dtype=int)
    for target, answer in zip(targets, answers, strict=True):
        table[place.get(target, last), place.get(answer, last)] += 1
    share = table / np.maximum(1, table.sum(axis=1, keepdims=True))
    side = 0.42 * len(names) + 1.8
    figure = Figure(figsize=(max(3.4, side + 0.6), max(2.8, side)), layout="constrained")
    panel = figure.subplots()
    panel.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(table), strict=True):
        panel.text(
            column,
            row,
            str(table[row, column]),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share[row, column] > 0.55 else "black",
        )
    panel.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
    panel.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    panel.set_xlabel("answered", fontsize=9)
    panel.set_ylabel("right answer", fontsize=9)
    panel.set_title(title, fontsize=10, loc="left")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return figure
