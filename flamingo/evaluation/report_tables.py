"""The report's tables, from ``results.json``: cells as text, ready to be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flamingo.choices import Condition, Metric
from flamingo.evaluation.bias_rows import BIAS_LABELS
from flamingo.evaluation.points import Row
from flamingo.evaluation.secondary import SECONDARY_LABELS
from flamingo.evaluation.tables import hundred, interval
from flamingo.naming import ALL, CONDITION_LABELS, naming


@dataclass(frozen=True, slots=True)
class Shown:
    """A number and what stands small beside it."""

    main: str
    small: str = ""


@dataclass(frozen=True, slots=True)
class TableLine:
    """``kind`` is a class of the page's style: ``real``, ``group`` or none."""

    label: str
    cells: Sequence[Shown]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """``head`` has the corner first."""

    head: Sequence[str]
    lines: Sequence[TableLine]


NOTHING = Shown("–")


def headline(results: Row, benchmark: Row) -> Row | None:
    """The model's score at the most shots, beside what it has to be compared with."""
    rows = [r for r in _of(results, benchmark, "model", "baselines") if r["group"] == ALL]
    shots = max((row["shots"] for row in rows if row["condition"] == "real"), default=None)
    if shots is None:
        return None
    means = {row["condition"]: hundred(row["mean"]) for row in rows if row["shots"] == shots}
    beside = [
        f"{name} {means[condition]}"
        for condition, name in (("blank_query", "image blanked"), ("chance", "chance"))
        if condition in means
    ]
    return {
        "title": benchmark["title"],
        "metric": naming(Metric(benchmark["metric"])).scale,
        "value": means["real"],
        "shots": counted(shots, benchmark["unit"]),
        "beside": ", ".join(beside),
    }


def counted(shots: int, unit: str) -> str:
    """``1 demonstration a class``, ``2 demonstrations a class``."""
    return f"{shots} {unit.replace('demonstrations', 'demonstration') if shots == 1 else unit}"


def sections(results: Row) -> list[Row]:
    """All tables of each benchmark that has results, with how it was asked and measured."""
    found = []
    for benchmark in results["benchmarks"]:
        scores = score_table(results, benchmark)
        if scores.lines:
            found.append(
                {
                    "title": benchmark["title"],
                    "how": how(results, benchmark),
                    "prompt": benchmark["prompt"],
                    "scores": scores,
                    "metrics": metric_table(results, benchmark),
                    "spread": spread_table(results, benchmark),
                    "bias": bias_table(results, benchmark),
                }
            )
    return found


def how(results: Row, benchmark: Row) -> str:
    """Metric, normalisation, queries, images, draws and decoding in one sentence."""
    rows = _real(results, benchmark)
    words, decoding = naming(Metric(benchmark["metric"])), benchmark["decoding"]
    search = f"beam search with {decoding['beams']}" if decoding["beams"] > 1 else "greedy"
    draws = max(row["seeds"] for row in rows)
    return (
        f"{words.scale}; normalisation of answers: {benchmark['normalization']}. "
        f"{rows[0]['n']} queries on {rows[0]['clusters']} images, "
        f"{draws} {'draw' if draws == 1 else 'draws'} of demonstrations. Open answers: {search}, "
        f"at most {decoding['max_new_tokens']} tokens; candidates by likelihood"
        f"{', a token' if decoding['normalize_by_length'] else ''}."
    )


def score_table(results: Row, benchmark: Row) -> Table:
    """The model, its controls and the baselines by shots; groups of queries under the model's.

    A control on fewer queries than the model says on how many.
    """
    rows = _of(results, benchmark, "model", "baselines")
    shots = sorted({row["shots"] for row in rows})
    queries = max((row["n"] for row in rows), default=0)
    lines = []
    for condition, label in CONDITION_LABELS.items():
        own = [row for row in rows if row["condition"] == condition]
        names = sorted({row["group"] for row in own} - {ALL})
        for group in [ALL, *names] if condition in Condition.__members__ else [ALL]:
            cells = {row["shots"]: row for row in own if row["group"] == group}
            if not cells:
                continue
            n = max(row["n"] for row in cells.values())
            name = label if group == ALL else group
            name += f" (n = {n})" if n < queries else ""
            kind = "group" if group != ALL else condition
            shown = [_with_interval(cells.get(count)) for count in shots]
            lines.append(TableLine(name, shown, kind))
    return Table([benchmark["unit"], *map(str, shots)], lines)


def metric_table(results: Row, benchmark: Row) -> Table | None:
    """The secondary metrics of the real prompts by shots."""
    rows = _real(results, benchmark)
    lines = [
        TableLine(label, [_with_interval(row["metrics"].get(name)) for row in rows])
        for name, label in SECONDARY_LABELS.items()
        if name != benchmark["metric"] and any(name in row["metrics"] for row in rows)
    ]
    return Table([benchmark["unit"], *_shots(rows)], lines) if lines else None


SPREAD_LABELS = {
    "error_new_seeds": "other demonstrations, the same queries",
    "error_new_images": "other images, the same demonstrations",
    "standard_error": "both new",
}


def spread_table(results: Row, benchmark: Row) -> Table | None:
    """Standard errors by their source, where there are several draws of demonstrations."""
    rows = _real(results, benchmark)
    if all(row["seeds"] == 1 for row in rows):
        return None
    lines = [
        TableLine(
            label,
            [NOTHING if r["seeds"] == 1 else Shown(f"± {hundred(r[name])}") for r in rows],
        )
        for name, label in SPREAD_LABELS.items()
    ]
    return Table([benchmark["unit"], *_shots(rows)], lines)


def bias_table(results: Row, benchmark: Row) -> Table | None:
    """Each rate by shots, with the right answers' own rate and the excess over it."""
    rows = _of(results, benchmark, "bias")
    shots = sorted({row["shots"] for row in rows})
    lines = []
    for measure, label in BIAS_LABELS.items():
        cells = {row["shots"]: row for row in rows if row["measure"] == measure}
        if cells:
            lines.append(TableLine(label, [_with_interval(cells.get(count)) for count in shots]))
            if any("excess" in row for row in cells.values()):
                shown = [_excess(cells.get(count)) for count in shots]
                lines.append(TableLine("beyond the right answers", shown, "group"))
    return Table([benchmark["unit"], *map(str, shots)], lines) if lines else None


def power_table(results: Row) -> Table | None:
    """The minimum detectable effect of each benchmark."""
    titles = {benchmark["name"]: benchmark for benchmark in results["benchmarks"]}
    lines = []
    for row in results["power"]:
        effect = row.get("design_effect")
        cells = [
            str(row["shots"]),
            str(row["n"]),
            hundred(row.get("paired")),
            hundred(row["unpaired"]),
            "–" if effect is None else f"{effect:.1f}",
        ]
        benchmark = titles[row["benchmark"]]
        scale = naming(Metric(benchmark["metric"])).scale
        lines.append(TableLine(f"{benchmark['title']}: {scale}", [Shown(cell) for cell in cells]))
    head = ["", "shots", "queries", "real against blanked", "two runs, other queries", "design"]
    return Table(head, lines) if lines else None


# ---------------------------------------------------------------------------- cells


def _of(results: Row, benchmark: Row, *kinds: str) -> list[Row]:
    return [row for kind in kinds for row in results[kind] if row["benchmark"] == benchmark["name"]]


def _real(results: Row, benchmark: Row) -> list[Row]:
    rows = [
        row
        for row in _of(results, benchmark, "model")
        if (row["condition"], row["group"]) == (Condition.real.value, ALL)
    ]
    return sorted(rows, key=lambda row: row["shots"])


def _shots(rows: Sequence[Row]) -> list[str]:
    return [str(row["shots"]) for row in rows]


def _with_interval(row: Mapping[str, Any] | None) -> Shown:
    return NOTHING if row is None else Shown(hundred(row["mean"]), interval(row))


def _excess(row: Mapping[str, Any] | None) -> Shown:
    if row is None:
        return NOTHING
    mean = row["excess"]["mean"]
    shown = f"{100 * mean:+.1f}" if round(100 * mean, 1) else "0.0"
    return Shown(shown, interval(row["excess"]))
