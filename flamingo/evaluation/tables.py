"""Results as text: what rows are called, how numbers are written, and the table that is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flamingo.choices import Metric
from flamingo.evaluation.points import Row
from flamingo.naming import ALL, CONDITION_LABELS, naming

UNKNOWN = "[–]"
"""For an interval that nothing tells."""


def hundred(value: float | None) -> str:
    """100 times a number, as published; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def interval(row: Mapping[str, Any]) -> str:
    """``[48.2, 61.7]``; :data:`UNKNOWN` where nothing tells it, as where nothing varies.

    Empty for an exact number (chance), for none, and for one that none is worked out for.
    """
    if row["mean"] is None or "low" not in row:
        return ""
    low, high = row["low"], row["high"]
    if low is None or high is None:
        return UNKNOWN
    if hundred(low) == hundred(high):
        return ""
    return f"[{hundred(low)}, {hundred(high)}]"


def table(results: Row) -> str:
    """The scores of the model, its controls and baselines: a line a benchmark and condition.

    100 times each benchmark's metric ± a standard error, or the 95 % interval where the error is
    0 or unknown (:data:`UNKNOWN`: none); an exact number stands alone. The text-only "0-shot" has
    a line of its own.
    """
    shots = sorted({row["shots"] for row in results["model"]})
    lines = [["benchmark", "", *(f"{count} shots" for count in shots)]]
    for benchmark in results["benchmarks"]:
        title = f"{benchmark['title']}: {naming(Metric(benchmark['metric'])).scale}"
        for condition, label in CONDITION_LABELS.items():
            cells = {
                row["shots"]: row
                for row in (*results["model"], *results["baselines"])
                if row["benchmark"] == benchmark["name"]
                and row["condition"] == condition
                and row["group"] == ALL
            }
            if cells:
                lines.append([title, label, *(_printed(cells.get(count)) for count in shots)])
                title = ""
    return _aligned(lines)


def _printed(row: Row | None) -> str:
    if row is None or row["mean"] is None:
        return "-"
    error = hundred(row["standard_error"])
    told = interval(row) if error in ("–", "0.0") else f"±{error}"
    return f"{hundred(row['mean'])} {told}".strip()


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """A markdown table with columns of equal width; numbers to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(
        "| "
        + " | ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in [lines[0], rule, *lines[1:]]
    )
