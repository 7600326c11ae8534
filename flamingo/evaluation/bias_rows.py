"""Bias and grounding of each real point with demonstrations, as rows of ``results.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from flamingo.choices import Condition
from flamingo.evaluation.bias import ContextRule, context_rate, flip_rate, recency
from flamingo.evaluation.metrics.naming import canonical
from flamingo.evaluation.points import Draw, Point, Row, row, without_nan
from flamingo.evaluation.statistics import Estimate
from flamingo.naming import ALL

RECENCY, ORDER_FLIP, BLANK_GAP = "recency", "order_flip", "blank_image_gap"
BIAS_LABELS = {
    ContextRule.copy_last.value: "copies the last answer",
    ContextRule.majority_label.value: "says the majority's answer",
    ContextRule.among_demonstrations.value: "says an answer of the demonstrations",
    RECENCY: "last answer over the others",
    ORDER_FLIP: "changes its answer in reversed order",
    BLANK_GAP: "score lost without the query's image",
}


def bias_rows(measured: Sequence[Point], differences: Sequence[Row]) -> list[Row]:
    """Rows of ``measure`` (the keys of :data:`BIAS_LABELS`), over all draws together.

    Copy-last, majority and among-demonstrations rates have ``right``, how often the right answers
    themselves follow the rule, and ``excess``, the paired difference. Order flips where the
    reversed order was run, the gap where the blanked query image was (from ``differences``).
    Answers are compared as the benchmark's metric does; errors are clustered by image, so that
    several draws of demonstrations on one image count as one.
    """
    by_place = {(p.benchmark.name, p.shots, p.condition): p for p in measured}
    gaps = {
        (r["benchmark"], r["shots"]): r for r in differences if r["condition"] == _BLANK_DIFFERENCE
    }
    rows = []
    for point in measured:
        if point.condition is not Condition.real:
            continue
        name = point.benchmark.name
        if all(e.demonstrations for draw in point.draws for e in draw.cell.episodes):
            rows += _context(point)
            reversed_order = by_place.get((name, point.shots, Condition.reversed_order))
            if reversed_order is not None:
                rows.append(_measure(point, ORDER_FLIP, _flips(point, reversed_order)))
        if (name, point.shots) in gaps:
            numbers = gaps[name, point.shots]
            kept = {key: numbers[key] for key in _KEPT}
            rows.append(row(point, point.condition.value, ALL, {"measure": BLANK_GAP, **kept}))
    return rows


_BLANK_DIFFERENCE = f"real - {Condition.blank_query.value}"
_KEPT = ("mean", "standard_error", "low", "high", "n", "clusters")


def _context(point: Point) -> list[Row]:
    same = canonical(point.benchmark.task.metric)
    answers, targets, shown, clusters = [], [], [], []
    for draw in point.draws:
        answers += [p.answer for p in draw.predictions]
        targets += [p.target for p in draw.predictions]
        shown += [[item.answer for item in e.demonstrations] for e in draw.cell.episodes]
        clusters += draw.clusters
    rows = []
    for rule in ContextRule:
        found = context_rate(rule, answers, targets, shown, clusters, same)
        more = {"right": found.right.mean, "excess": _brief(found.excess)}
        rows.append(_measure(point, rule.value, found.rate, more))
    if min(map(len, shown)) > 1:
        rows.append(_measure(point, RECENCY, recency(answers, shown, clusters, same)))
    return rows


def _flips(real: Point, other: Point) -> Estimate:
    """On the other's queries and draws."""
    by_seed: dict[int, Draw] = {draw.cell.seed: draw for draw in real.draws}
    first, second, clusters = [], [], []
    for draw in other.draws:
        said = {p.query: p.answer for p in by_seed[draw.cell.seed].predictions}
        first += [said[p.query] for p in draw.predictions]
        second += [p.answer for p in draw.predictions]
        clusters += draw.clusters
    return flip_rate(first, second, clusters, canonical(real.benchmark.task.metric))


def _measure(point: Point, name: str, found: Estimate, more: Row | None = None) -> Row:
    values = {"measure": name, **asdict(found), **(more or {})}
    return row(point, point.condition.value, ALL, values)


def _brief(found: Estimate) -> Row:
    return without_nan({"mean": found.mean, "low": found.low, "high": found.high})
