"""Published few-shot results, to stand beside ours: ``published.json``, read and typed.

What the literature calls 0-shot has two demonstrations as text alone. It stands in the file under
``text_only_zero_shot``, the name of our condition for it, and is never set against a true 0-shot.
Values are in per cent there (CIDEr x 100), as printed; fractions here, as everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from pydantic import TypeAdapter, ValidationError

from flamingo.choices import Condition, Metric
from flamingo.comparison.formats import Table

TEXT_ONLY = Condition.text_only_zero_shot.value
ACCURACIES = {
    Metric.vqa_accuracy,
    Metric.vqa_accuracy_always,
    Metric.ok_vqa_accuracy,
    Metric.ok_vqa_accuracy_always,
}
"""Variants of one metric: their difference is far below that between models, but not nothing."""


METRIC_NAMES = {
    Metric.cider: "CIDEr",
    Metric.roc_auc: "ROC AUC",
    **dict.fromkeys(ACCURACIES, "accuracy"),
}


@dataclass(frozen=True, slots=True)
class Published:
    """One printed number: with shots under the real condition, or 0 shots and text-only."""

    model: str
    benchmark: str
    shots: int
    condition: Condition
    value: float
    metric: Metric
    split: str
    protocol: str
    source: str
    note: str


@dataclass(frozen=True, slots=True)
class _Benchmark:
    name: str
    split: str
    metric: Metric
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Model:
    model: str
    source: str
    protocol: str
    note: str
    benchmarks: list[_Benchmark]


def load_published(text: str | None = None) -> list[Published]:
    """Every published number, in the file's order; ``text`` instead of the packaged file.

    Raises ``ValueError`` naming the place for a file of another form, a number outside [0, 200],
    a shot count that is none, and a number that comes twice.
    """
    if text is None:
        file = resources.files("flamingo.comparison").joinpath("published.json")
        text = file.read_text("utf-8")
    try:
        models = TypeAdapter(list[_Model]).validate_json(text)
    except ValidationError as error:
        raise ValueError(f"published.json: {error}") from error
    rows = [row for model in models for own in model.benchmarks for row in _rows(model, own)]
    seen: set[tuple[str, str, int]] = set()
    for row in rows:
        key = (row.model, row.benchmark, row.shots)
        if key in seen:
            raise ValueError(f"published.json: expected each number once, got {key} twice")
        seen.add(key)
    return rows


def _rows(model: _Model, own: _Benchmark) -> list[Published]:
    rows = []
    for key, value in own.values.items():
        place = f"published.json: {model.model}, {own.name}, {key!r}"
        if key != TEXT_ONLY and not (key.isdecimal() and int(key) > 0):
            raise ValueError(f"{place}: expected a number of shots or {TEXT_ONLY}")
        if not 0 <= value <= 200:
            raise ValueError(f"{place}: expected per cent, got {value}")
        text_only = key == TEXT_ONLY
        rows.append(
            Published(
                model=model.model,
                benchmark=own.name,
                shots=0 if text_only else int(key),
                condition=Condition.text_only_zero_shot if text_only else Condition.real,
                value=value / 100,
                metric=own.metric,
                split=own.split,
                protocol=model.protocol,
                source=model.source,
                note=model.note,
            )
        )
    return rows


def beside(
    published: Sequence[Published], benchmark: str, metric: Metric
) -> dict[str, list[Published]]:
    """The numbers of each model on ``benchmark``, if they measure the same thing as ``metric``."""
    found: dict[str, list[Published]] = {}
    for row in published:
        same = row.metric is metric or {row.metric, metric} <= ACCURACIES
        if row.benchmark == benchmark and same:
            found.setdefault(row.model, []).append(row)
    return found


def chosen(published: Sequence[Published], models: Sequence[str] | None) -> list[Published]:
    """The rows of ``models`` (None: all). Raises ``ValueError`` for a model that is not there."""
    if models is None:
        return list(published)
    known = list(dict.fromkeys(row.model for row in published))
    if unknown := [name for name in models if name not in known]:
        raise ValueError(f"published: expected some of {known}, got {unknown}")
    return [row for row in published if row.model in models]


def published_table(published: Sequence[Published]) -> Table:
    """Benchmarks down, models across; a cell has a number a shot count, in the order of the header.

    In per cent, as printed. A number that is not in ``published`` is a dash; models that were
    evaluated on different splits have different rows.
    """
    models = list(dict.fromkeys(row.model for row in published))
    columns = sorted({(row.shots, row.condition.value) for row in published})
    printed = {
        ((r.benchmark, r.split, r.metric), r.model, (r.shots, r.condition.value)): r
        for r in published
    }
    rows = []
    for task in dict.fromkeys(task for task, _, _ in printed):
        cells = []
        for model in models:
            found = (printed.get((task, model, column)) for column in columns)
            numbers = (f"{100 * row.value:.1f}" if row is not None else "–" for row in found)
            cells.append(" / ".join(numbers))
        benchmark, split, metric = task
        rows.append([f"{benchmark} ({split}, {METRIC_NAMES.get(metric, metric.value)})", *cells])
    shots = " / ".join("0*" if name == TEXT_ONLY else str(n) for n, name in columns)
    return Table(
        name="published",
        title="Published numbers",
        caption=f"{shots} shots, in per cent. * The text of two demonstrations without images.",
        header=[f"shots: {shots}", *models],
        rows=rows,
        records=[],
        names=1,
    )
