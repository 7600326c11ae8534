"""VizWiz-VQA in its published format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_images
from flamingo.evaluation.benchmarks.vizwiz import read_vizwiz, write_vizwiz_submission
from tests.evaluation.benchmarks.fixtures import BLUE, DATA, GREEN, colour, edited, ref

FOLDER = DATA / "vizwiz"


def test_questions_have_ten_answers_and_their_answer_type() -> None:
    examples = read_vizwiz(FOLDER / "val.json", FOLDER / "val")
    assert examples == [
        Example(
            id="VizWiz_val_00000000.jpg",
            images=(ref("vizwiz/VizWiz_val_00000000"),),
            question="Ok. There is another picture I hope it is a better one.",
            answers=(
                *("unanswerable", "unanswerable"),
                *("cannot repair this computer automatically", "blank"),
                *("unanswerable",) * 6,
            ),
            group="unanswerable",
            cluster="vizwiz/VizWiz_val_00000000",
        ),
        Example(
            id="VizWiz_val_00000001.jpg",
            images=(ref("vizwiz/VizWiz_val_00000001"),),
            question="Can you tell me what is in this can please?",
            answers=(
                *("tomato soup", "soup", "tomato soup", "tomato soup", "soup"),
                *("tomato soup", "tomato soup", "tomato soup", "Tomato Soup", "tomato soup"),
            ),
            group="other",
            cluster="vizwiz/VizWiz_val_00000001",
        ),
    ]
    check_images(examples)
    assert colour(examples[1]) == GREEN


def test_the_test_split_has_no_answers_and_is_submitted_by_image(tmp_path: Path) -> None:
    examples = read_vizwiz(FOLDER / "test.json", FOLDER / "test")
    assert examples == [
        Example(
            id="VizWiz_test_00000000.jpg",
            images=(ref("vizwiz/VizWiz_test_00000000"),),
            question="Which one is the blue one?",
            cluster="vizwiz/VizWiz_test_00000000",
        )
    ]
    assert colour(examples[0]) == BLUE
    path = tmp_path / "submission.json"
    write_vizwiz_submission(path, examples, {"VizWiz_test_00000000.jpg": "left"})
    assert json.loads(path.read_text()) == [{"image": "VizWiz_test_00000000.jpg", "answer": "left"}]
    with pytest.raises(ValueError, match="1 without an answer"):
        write_vizwiz_submission(path, examples, {})


def test_malformed_records_and_missing_images_are_named(tmp_path: Path) -> None:
    path = edited(FOLDER / "val.json", tmp_path / "v.json", lambda rows: rows[1].pop("question"))
    with pytest.raises(ValueError, match=r"v.json: \[1\]\.question: expected this field"):
        read_vizwiz(path, FOLDER / "val")
    with pytest.raises(ValueError, match="VizWiz_val_00000000.jpg: .*2 of 2 images"):
        check_images(read_vizwiz(FOLDER / "val.json", FOLDER / "test"))
