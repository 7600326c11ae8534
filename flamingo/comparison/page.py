"""The page of a comparison: tables, curves, and single predictions of two arms side by side.

It needs no network. Thumbnails stand beside it in ``images/``; everything else is in it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from flamingo.comparison.arms import Arm
from flamingo.comparison.examples import Agreement, Cell, Example
from flamingo.comparison.formats import Table
from flamingo.comparison.published import Published
from flamingo.evaluation.predictions import Prediction
from flamingo.naming import column_title, naming, shot_column
from flamingo.types import END_OF_CHUNK_TOKEN

Picture = Callable[[str, str], str | None]
"""File of the image of an item (benchmark, id); None where there is none."""


@dataclass(frozen=True)
class Content:
    """All that the page shows."""

    arms: Sequence[Arm]
    tables: Sequence[Table]
    curves: bytes
    """As PNG."""
    cells: Sequence[Cell]
    published: Sequence[Published]
    notes: Sequence[str]
    """What a reader has to know: what differs or is missing."""
    command: str


def render(content: Content, picture: Picture) -> str:
    """The page's HTML."""
    source = resources.files("flamingo.comparison").joinpath("page.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(source).render(
        arms=content.arms,
        tables=content.tables,
        curves=f"data:image/png;base64,{base64.b64encode(content.curves).decode()}",
        sources=_sources(content.published),
        notes=content.notes,
        command=content.command,
        data=browser_data(content.cells, picture),
    )


def _sources(published: Sequence[Published]) -> list[dict[str, str]]:
    """Each model's source, protocol and splits once."""
    found: dict[str, dict[str, Any]] = {}
    for row in published:
        entry = found.setdefault(
            row.model,
            {"model": row.model, "source": row.source, "protocol": row.protocol, "note": row.note}
            | {"splits": {}},
        )
        entry["splits"][row.benchmark] = f"{row.benchmark} ({row.split})"
    return [entry | {"splits": ", ".join(entry["splits"].values())} for entry in found.values()]


def browser_data(cells: Sequence[Cell], picture: Picture) -> dict[str, Any]:
    """What the page's script browses: cells with examples; each prompt and image once."""
    prompts: dict[str, int] = {}
    return {
        "agreements": [[agreement.name, agreement.value] for agreement in Agreement],
        "cells": [
            {
                "first": cell.first.arm.label,
                "second": cell.second.arm.label,
                "benchmark": cell.first.facts.title,
                "metric": naming(cell.first.facts.metric).scale,
                "shots": _shots(cell),
                "totals": {agreement.name: n for agreement, n in cell.totals.items()},
                "examples": [_example(cell, e, prompts, picture) for e in cell.examples],
            }
            for cell in cells
        ],
        "prompts": list(prompts),
    }


def _shots(cell: Cell) -> str:
    first, second = (
        column_title(shot_column(sample.arm.condition, sample.shots))
        for sample in (cell.first, cell.second)
    )
    return first if first == second else f"{first} / {second}"


def _example(
    cell: Cell, example: Example, prompts: dict[str, int], picture: Picture
) -> Mapping[str, Any]:
    benchmark = cell.first.facts.name
    first, second = example.first, example.second
    return {
        "agreement": example.agreement.name,
        "query": first.query,
        "group": first.group,
        "key": first.cluster,
        "image": picture(benchmark, first.query),
        "references": sorted(set(first.references), key=first.references.index),
        "answers": [
            {
                "answer": own.answer,
                "probability": round(own.probability, 4),
                "score": round(score, 4),
                "prompt": prompts.setdefault(own.prompt, len(prompts)),
                "demonstrations": _demonstrations(benchmark, own, picture),
            }
            for own, score in ((first, example.first_score), (second, example.second_score))
        ],
    }


def _demonstrations(
    benchmark: str, prediction: Prediction, picture: Picture
) -> list[dict[str, str | None]]:
    """Image and text of each demonstration; the text as in the prompt, if it can be told there."""
    ids = prediction.demonstrations
    texts = prediction.prompt.split(END_OF_CHUNK_TOKEN)[:-1]
    shown: Sequence[str | None] = texts if len(texts) == len(ids) else [None] * len(ids)
    return [
        {"id": name, "image": picture(benchmark, name), "text": text}
        for name, text in zip(ids, shown, strict=True)
    ]
