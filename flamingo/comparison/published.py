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

TEXT_ONLY = Condition.text_only_zero_shot.value
ACCURACIES = {
    Metric.vqa_accuracy,
    Metric.vqa_accuracy_always,
    Metric.ok_vqa_accuracy,
    Metric.ok_vqa_accuracy_always,
}
"""Variants of one metric: their difference is far below that between models, but not nothing."""


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
