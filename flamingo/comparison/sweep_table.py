"""The results of a sweep as tables for readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flamingo.choices import Condition
from flamingo.comparison.cells import (
    NOTHING,
    number,
    p_value,
    signed,
    signed_with_interval,
    with_interval,
)
from flamingo.comparison.formats import Table, markdown

Results = Mapping[str, Any]
"""What :func:`flamingo.comparison.sweep.compare_sweep` gives."""


def sweep_markdown(results: Results) -> str:
    """What was asked, the scores of all arms, and the tested differences."""
    told = f"{results['question']} {results['steps']:,} training steps."
    return "\n".join([told, "", *(markdown(table) for table in sweep_tables(results))])


def sweep_tables(results: Results) -> list[Table]:
    """Scores, controls (where the runs have any), differences."""
    controls = [control_table(results)] if results.get("controls") else []
    return [score_table(results), *controls, difference_table(results)]


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


def control_table(results: Results) -> Table:
    """Each arm beside its controls, where arms are tested."""
    controls = results["controls"]
    conditions = list(dict.fromkeys(row["condition"] for row in controls))
    said = {
        (row["benchmark"], row["arm"], row["condition"]): _interval(row, "mean") for row in controls
    }
    shots = {row["benchmark"]: row["shots"] for row in controls}
    model = {
        (cell["benchmark"], cell["arm"]): _interval(cell, "mean")
        for cell in results["cells"]
        if shots.get(cell["benchmark"]) == cell["shots"]
    }
    return Table(
        name="controls",
        title="Beside their controls",
        caption="As above; conditions other than the model's own are asked fewer queries.",
        header=["benchmark", "arm", "shots", "model", *(Condition(c).label for c in conditions)],
        rows=[
            [
                own["title"],
                arm["name"],
                str(shots[own["name"]]),
                model[own["name"], arm["name"]],
                *(said.get((own["name"], arm["name"], c), NOTHING) for c in conditions),
            ]
            for own in results["benchmarks"]
            for arm in results["arms"]
            if (own["name"], arm["name"]) in model
        ],
        records=controls,
    )


def difference_table(results: Results) -> Table:
    """Each arm minus the reference where arms are tested."""
    tested = tested_rows(results)
    tests = sum(row["p_holm"] is not None for row in tested)
    unequal = {row["arm"] for row in tested if len(row["seeds"]) == 1}
    caption = (
        f"Difference to “{results['reference']}” in points, on the same queries and seeds, with "
        f"the 95 % interval for new seeds and new images together. {tests} tests "
        f"(at up to {results['tested_at_shots']} shots): p of Student's t, corrected by Holm's "
        "method over all of them, beside the raw one. By seed: the difference of each. Where "
        "nothing varies there is no interval, and p is that of the sign-flip test over images."
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
                row["title"],
                row["arm"],
                str(row["shots"]),
                signed_with_interval(*(number(row[key]) for key in ("difference", "low", "high"))),
                p_value(number(row["p_holm"])),
                p_value(number(row["p"])),
                ", ".join(signed(number(value)) for value in row["by_seed"]),
                str(row["n"]),
                str(row["images"]),
            ]
            for row in tested
        ],
        records=results["differences"],
    )


def tested_rows(results: Results) -> Sequence[Mapping[str, Any]]:
    """The differences that are tested, by benchmark, in the order of the arms, each with the
    benchmark's title."""
    return [
        {**row, "title": own["title"]}
        for own in results["benchmarks"]
        for row in results["differences"]
        if row["tested"] and row["benchmark"] == own["name"]
    ]


def _interval(row: Mapping[str, Any], name: str) -> str:
    return with_interval(*(number(row[key]) for key in (name, "low", "high")))
