"""The tables of a comparison: shots, groups of questions, paired differences, biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flamingo.comparison.arms import Facts
from flamingo.comparison.cells import (
    NOTHING,
    p_value,
    percent,
    signed_with_interval,
    with_interval,
)
from flamingo.comparison.differences import Difference
from flamingo.comparison.estimates import Measured
from flamingo.comparison.formats import Table
from flamingo.comparison.published import Published, beside
from flamingo.comparison.rates import Rates
from flamingo.comparison.samples import Sample
from flamingo.evaluation.corrections import Correction
from flamingo.evaluation.statistics import Estimate
from flamingo.naming import ALL, Column, column_title, shot_column

CORRECTIONS = {
    Correction.none: "not corrected for the number of tests",
    Correction.holm: "corrected by Holm's method over all of them",
    Correction.benjamini_hochberg: "corrected by Benjamini and Hochberg's method over all of them",
}


def shot_table(
    benchmarks: Sequence[Facts], numbers: Sequence[Measured], published: Sequence[Published]
) -> Table:
    """Benchmark and arm x shots, each with its interval; published numbers under ours."""
    own = [number for number in numbers if number.group == ALL]
    printed = {facts.name: beside(published, facts.name, facts.metric) for facts in benchmarks}
    columns = sorted(
        {shot_column(m.sample.arm.condition, m.sample.shots) for m in own}
        | {
            shot_column(row.condition, row.shots)
            for models in printed.values()
            for rows in models.values()
            for row in rows
        }
    )
    rows, records = [], []
    for facts in benchmarks:
        mine = [number for number in own if number.sample.facts.name == facts.name]
        for label in dict.fromkeys(number.sample.arm.label for number in mine):
            cells = {_place_of(m): _cell(m) for m in mine if m.sample.arm.label == label}
            rows.append([facts.title, label, *(cells.get(c, NOTHING) for c in columns)])
        for model, found in printed[facts.name].items():
            cells = {shot_column(row.condition, row.shots): percent(row.value) for row in found}
            cells_ = [cells.get(c, NOTHING) for c in columns]
            rows.append([facts.title, f"{model} (published)", *cells_])
            records += [_published_record(facts, row) for row in found]
    caption = (
        "Per cent (CIDEr and ROC-AUC x 100) with 95 % intervals, clustered by image; over several "
        "draws of demonstrations the mean over draws, and the interval for new demonstrations and "
        "new images together."
    )
    if any(printed.values()):
        caption += (
            " Published numbers are as printed, without intervals; their splits and protocols are "
            "not always ours. What the literature calls 0-shot is text-only."
        )
    return Table(
        name="shots",
        title="Shots",
        caption=caption,
        header=["benchmark", "arm", *map(column_title, columns)],
        rows=rows,
        records=[*map(_record, own), *records],
    )


def group_table(numbers: Sequence[Measured]) -> Table | None:
    """Benchmark, group of questions and arm x shots; None if no benchmark has groups."""
    own = [number for number in numbers if number.group != ALL]
    if not own:
        return None
    columns = sorted({_place_of(number) for number in own})
    keys = dict.fromkeys(
        (m.sample.facts.title, m.group, m.sample.arm.label)
        for m in sorted(own, key=lambda m: (m.sample.facts.title, m.group))
    )
    rows = []
    for title, group, label in keys:
        cells = {
            _place_of(m): _cell(m)
            for m in own
            if (m.sample.facts.title, m.group, m.sample.arm.label) == (title, group, label)
        }
        rows.append([title, group, label, *(cells.get(c, NOTHING) for c in columns)])
    return Table(
        name="groups",
        title="By type of question",
        caption="As the table of shots, by the group of questions that the benchmark defines.",
        header=["benchmark", "group", "arm", *map(column_title, columns)],
        rows=rows,
        records=list(map(_record, own)),
        names=3,
    )


def difference_table(rows: Sequence[Difference], correction: Correction) -> Table | None:
    """Each arm minus the reference; None without a pair."""
    if not rows:
        return None
    caption = (
        f"Difference to “{rows[0].reference.arm.label}” on the queries both have, in points, with "
        "its 95 % bootstrap interval over images; demonstrations are held as they were drawn. "
        f"{len(rows)} test{'s' if len(rows) > 1 else ''}: "
        f"p of the paired permutation test, {CORRECTIONS[correction]} "
        "(to be reported), beside the raw p-values of permutation and bootstrap. Detectable: the "
        "smallest true difference that a single test at level 5 % finds with 80 % power, for this "
        "n. Where no query's score differs there is no interval, and nothing to tell it from."
    )
    header = ["benchmark", "arm", "shots", "difference", "p", "raw p", "bootstrap p"]
    return Table(
        name="differences",
        title="Paired differences",
        caption=caption,
        header=[*header, "detectable", "n", "images"],
        rows=[
            [
                row.arm.facts.title,
                row.arm.arm.label,
                _shots(row.arm),
                _difference(row),
                p_value(row.corrected),
                p_value(row.permutation_p),
                p_value(row.bootstrap_p),
                percent(row.detectable),
                str(row.n),
                str(row.clusters),
            ]
            for row in rows
        ],
        records=[
            {
                **_keys(row.arm),
                "reference": row.reference.arm.label,
                "difference": row.value,
                "low": row.low,
                "high": row.high,
                "p": row.corrected,
                "correction": correction.value,
                "tests": len(rows),
                "permutation_p": row.permutation_p,
                "bootstrap_p": row.bootstrap_p,
                "detectable": row.detectable,
                "n": row.n,
                "images": row.clusters,
            }
            for row in rows
        ],
    )


def rate_table(rows: Sequence[Rates], reference: str | None) -> Table | None:
    """Yes-ratio, changed answers and calibration; None if nothing applies."""
    if not rows:
        return None
    changed = f" Changed answers: another answer than “{reference}” gave." if reference else ""
    names = ["benchmark", "arm", "shots"]
    header, lines = _without_empty(
        [*names, "yes-ratio", "right", "changed answers", "ECE"],
        [
            [
                row.sample.facts.title,
                row.sample.arm.label,
                _shots(row.sample),
                _interval(row.yes),
                NOTHING if row.right_yes is None else percent(row.right_yes.mean),
                _interval(row.flips),
                NOTHING if row.calibration is None else percent(row.calibration),
            ]
            for row in rows
        ],
        len(names),
    )
    return Table(
        name="biases",
        title="Biases",
        caption=(
            "Per cent with 95 % intervals, clustered by image, of the first draw of "
            "demonstrations. Yes-ratio: where every right answer is yes or no, the share of yes "
            f"among the answers (and among the right ones).{changed} ECE: expected calibration "
            "error of ranked answers."
        ),
        header=header,
        rows=lines,
        records=[
            {
                **_keys(row.sample),
                **_ends("yes_ratio", row.yes),
                "right_yes_ratio": None if row.right_yes is None else row.right_yes.mean,
                **_ends("changed", row.flips),
                "ece": row.calibration,
            }
            for row in rows
        ],
    )


# ---------------------------------------------------------------------------- cells


def _without_empty(
    header: list[str], rows: list[list[str]], names: int
) -> tuple[list[str], list[list[str]]]:
    """Without columns, but for the first ``names``, in which nothing stands."""
    kept = [i for i in range(len(header)) if i < names or any(r[i] != NOTHING for r in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _difference(row: Difference) -> str:
    return signed_with_interval(row.value, row.low, row.high)


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return NOTHING
    return with_interval(estimate.mean, estimate.low, estimate.high)


def _cell(number: Measured) -> str:
    return with_interval(number.mean, number.low, number.high)


def _place_of(number: Measured) -> Column:
    """Of a number in the table of shots."""
    return shot_column(number.sample.arm.condition, number.sample.shots)


def _shots(sample: Sample) -> str:
    return column_title(shot_column(sample.arm.condition, sample.shots))


def _keys(sample: Sample) -> dict[str, Any]:
    return {
        "benchmark": sample.facts.name,
        "arm": sample.arm.label,
        "condition": sample.arm.condition.value,
        "shots": sample.shots,
        "metric": sample.facts.metric.value,
    }


def _record(number: Measured) -> dict[str, Any]:
    return {
        **_keys(number.sample),
        "group": number.group,
        "mean": number.mean,
        "standard_error": number.standard_error,
        "low": number.low,
        "high": number.high,
        "n": number.n,
        "images": number.clusters,
        "draws": number.draws,
        "source": "",
    }


def _published_record(facts: Facts, row: Published) -> dict[str, Any]:
    return {
        "benchmark": facts.name,
        "arm": row.model,
        "condition": row.condition.value,
        "shots": row.shots,
        "metric": row.metric.value,
        "group": ALL,
        "mean": row.value,
        "source": f"{row.source}; {row.split}",
    }


def _ends(name: str, estimate: Estimate | None) -> Mapping[str, float | None]:
    mean, low, high = (
        (None, None, None) if estimate is None else (estimate.mean, estimate.low, estimate.high)
    )
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
