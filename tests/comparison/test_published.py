"""The published numbers are those that were printed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from flamingo.choices import Condition, Metric
from flamingo.comparison.formats import markdown
from flamingo.comparison.published import beside, chosen, load_published, published_table

SHOTS = (0, 4, 8, 16, 32)
PRINTED = {
    ("OpenFlamingo-3B", "coco"): (74.9, 77.3, 85.9, 89.8, 93.0),
    ("OpenFlamingo-3B", "flickr30k"): (52.3, 57.2, 58.6, 59.2, 61.1),
    ("OpenFlamingo-3B (Instruct)", "textvqa"): (23.1, 28.1, 29.1, 29.1, 28.5),
    ("OpenFlamingo-4B (Instruct)", "coco"): (81.2, 85.8, 94.8, 98.0, 99.2),
    ("OpenFlamingo-9B", "flickr30k"): (59.5, 65.8, 62.9, 62.8, 61.3),
    ("OpenFlamingo-4B", "vizwiz"): (18.8, 26.6, 28.8, 24.6, 23.1),
    ("OpenFlamingo-9B", "vqav2"): (52.7, 54.8, 54.8, 54.3, 53.3),
    ("OpenFlamingo-9B", "ok_vqa"): (37.8, 40.1, 41.1, 42.7, 42.4),
    ("OpenFlamingo-4B", "hateful_memes"): (52.3, 51.5, 55.2, 54.5, 52.2),
    ("Flamingo-9B", "textvqa"): (31.8, 33.6, 33.6, 33.5, 32.6),
    ("Flamingo-9B", "coco"): (79.4, 93.1, 99.0, 102.2, 106.3),
    ("IDEFICS-9B", "vqav2"): (50.9, 55.4, 56.4, 57.0, 57.9),
    ("IDEFICS-80B", "flickr30k"): (53.7, 73.7, 76.6, 80.1, 81.1),
}


@pytest.mark.parametrize(("model", "benchmark"), PRINTED)
def test_numbers_are_as_printed(model: str, benchmark: str) -> None:
    rows = [r for r in load_published() if (r.model, r.benchmark) == (model, benchmark)]
    assert tuple(row.shots for row in rows) == SHOTS
    assert tuple(round(100 * row.value, 1) for row in rows) == PRINTED[model, benchmark]


def test_the_zero_shot_of_the_literature_is_the_text_only_one() -> None:
    for row in load_published():
        text_only = row.condition is Condition.text_only_zero_shot
        assert text_only == (row.shots == 0)
        assert text_only or row.condition is Condition.real


def test_every_number_names_source_split_and_protocol() -> None:
    rows = load_published()
    assert all(row.source and row.split and row.protocol for row in rows)
    counts = Counter(row.model for row in rows)
    sizes = ("3B", "3B (Instruct)", "4B", "4B (Instruct)", "9B")
    assert counts == {f"OpenFlamingo-{size}": 35 for size in sizes} | {
        "Flamingo-9B": 30,
        "Flamingo-3B": 3,
        "Flamingo-80B": 11,
        "IDEFICS-9B": 35,
        "IDEFICS-80B": 35,
    }


def test_numbers_stand_beside_the_same_metric_alone() -> None:
    rows = load_published()
    assert "Flamingo-9B" in beside(rows, "vqav2", Metric.vqa_accuracy_always)
    assert beside(rows, "vqav2", Metric.exact_match) == {}
    assert beside(rows, "easy_vqa", Metric.vqa_accuracy) == {}


def test_the_table_in_the_documentation_is_that_of_the_file() -> None:
    rows = [row for row in load_published() if row.model.startswith("OpenFlamingo-")]
    table = published_table(rows)
    assert table.rows[0][:2] == [
        "coco (Karpathy test, CIDEr)",
        "74.9 / 77.3 / 85.9 / 89.8 / 93.0",
    ]
    assert len(table.rows) == 7
    lines = [line for line in markdown(table).splitlines() if line.startswith("|")]
    page = Path(__file__).parents[2] / "docs" / "interop.md"
    assert "\n".join(lines) in page.read_text(encoding="utf-8"), "put this table there"


def test_a_number_that_was_not_printed_is_a_dash_and_splits_are_not_mixed() -> None:
    rows = [r for r in load_published() if r.benchmark == "coco" and "80B" in r.model]
    nothing = "– / – / – / – / –"
    assert published_table(rows).rows == [
        ["coco (Karpathy test, CIDEr)", "84.3 / 103.2 / – / – / 113.8", nothing],
        ["coco (not stated, CIDEr)", nothing, "91.8 / 110.3 / 114.3 / 116.6 / 116.6"],
    ]


def test_an_unknown_model_is_named() -> None:
    rows = load_published()
    assert {row.model for row in chosen(rows, ["Flamingo-9B"])} == {"Flamingo-9B"}
    assert chosen(rows, []) == []
    with pytest.raises(ValueError, match=r"expected some of .*Flamingo-9B.*got \['GPT-4'\]"):
        chosen(rows, ["GPT-4"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": {"0": 50.0}}, "'0': expected a number of shots or text_only_zero_shot"),
        ({"values": {"4": 500.0}}, "expected per cent, got 500.0"),
        ({"metric": "bleu"}, "metric"),
    ],
)
def test_a_wrong_file_is_refused(changes: dict, message: str) -> None:
    own = {"name": "coco", "split": "test", "metric": "cider", "values": {"4": 50.0}} | changes
    model = {"model": "M", "source": "s", "protocol": "p", "note": "", "benchmarks": [own]}
    with pytest.raises(ValueError, match=message):
        load_published(json.dumps([model]))


def test_a_number_that_comes_twice_is_refused() -> None:
    own = {"name": "coco", "split": "test", "metric": "cider", "values": {"4": 50.0}}
    model = {"model": "M", "source": "s", "protocol": "p", "note": "", "benchmarks": [own]}
    with pytest.raises(ValueError, match="expected each number once"):
        load_published(json.dumps([model, model]))
