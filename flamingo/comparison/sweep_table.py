"""The results of a sweep as tables for readers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo.comparison.cells import NOTHING, p_value, signed, with_interval
from flamingo.comparison.formats import Table, markdown

Results = Mapping[str, Any]
"""What :func:`flamingo.comparison.sweep.compare_sweep` gives."""


def sweep_markdown(results: Results) -> str:
    """What was asked, the scores of all arms, and the tested differences."""
    told = f"{results['question']} {results['steps']:,} training steps."
    return "\n".join(
        [told, "", markdown(score_table(results)), markdown(difference_table(results))]
    )


def score_table(results: Results) -> Table:
    """Benchmark and arm x shots, each with its interval over seeds and images."""
    shots = sorted({cell["shots"] for cell in results["cells"]})
    rows = []
    for benchmark in results["benchmarks"]:
        for arm in results["arms"]:
            own = {
                cell["shots"]: _interval(cell, "mean")
                for cell in results["cells"]
                if (cell["benchmark"], cell["arm"]) == (benchmark["name"], arm["name"])
            }
            if own:
                said = f"{arm['name']} ({len(arm['seeds'])})"
                rows.append([benchmark["title"], said, *(own.get(k, NOTHING) for k in shots)])
    return Table(
        name="scores",
        title="Scores",
        caption=(
            "Per cent, the mean over training seeds (as many as in brackets) with the 95 % "
            "interval for new seeds and new images together; of one seed for new images alone."
        ),
        header=["benchmark", "arm (seeds)", *map(str, shots)],
        rows=rows,
        records=results["cells"],
    )


def difference_table(results: Results) -> Table:
    """Each arm minus the reference where arms are tested."""
    titles = {own["name"]: own["title"] for own in results["benchmarks"]}
    tested = tested_rows(results)
    unequal = {row["arm"] for row in tested if len(row["seeds"]) == 1}
    caption = (
        f"Difference to “{results['reference']}” in points, on the same queries and seeds, with "
        f"the 95 % interval for new seeds and new images together. {len(tested)} tests "
        f"(at up to {results['tested_at_shots']} shots): p of Student's t, corrected by Holm's "
        "method over all of them, beside the raw one. By seed: the difference of each. Where no "
        "query's score differs there is no interval."
    )
    if unequal:
        named = ", ".join(sorted(unequal))
        caption += f" Of one seed alone, for new images and nothing of other seeds: {named}."
    return Table(
        name="differences",
        title=f"Differences to “{results['reference']}”",
        caption=caption,
        header=["benchmark", "arm", "shots", "difference", "p", "raw p", "by seed", "n", "images"],
        rows=[
            [
                titles[row["benchmark"]],
                row["arm"],
                str(row["shots"]),
                _signed_interval(row),
                p_value(_number(row["p_holm"])),
                p_value(_number(row["p"])),
                ", ".join(signed(_number(value)) for value in row["by_seed"]),
                str(row["n"]),
                str(row["images"]),
            ]
            for row in tested
        ],
        records=results["differences"],
    )


def tested_rows(results: Results) -> Sequence[Mapping[str, Any]]:
    """The differences that are tested, by benchmark, in the order of the arms."""
    order = [own["name"] for own in results["benchmarks"]]
    tested = [row for row in results["differences"] if row["tested"]]
    return sorted(tested, key=lambda row: order.index(row["benchmark"]))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _interval(row: Mapping[str, Any], name: str) -> str:
    return with_interval(*(_number(row[key]) for key in (name, "low", "high")))


def _signed_interval(row: Mapping[str, Any]) -> str:
    value, low, high = (_number(row[key]) for key in ("difference", "low", "high"))
    return signed(value) if math.isnan(low) else f"{signed(value)} [{signed(low)}, {signed(high)}]"
