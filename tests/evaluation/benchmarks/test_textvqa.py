"""TextVQA 0.5.1 in its published format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_images
from flamingo.evaluation.benchmarks.textvqa import read_textvqa
from flamingo.evaluation.benchmarks.vqa import write_vqa_submission
from tests.evaluation.benchmarks.fixtures import DATA, GREEN, RED, colour, edited, ref

FOLDER = DATA / "textvqa"
TRAIN = FOLDER / "TextVQA_0.5.1_train.json"


def test_questions_have_ten_answers_and_share_their_image() -> None:
    examples = read_textvqa(TRAIN, FOLDER / "train_images")
    assert examples == [
        Example(
            id="34602",
            images=(ref("textvqa/003a8ae2ef43b901"),),
            question="what is the brand of this camera?",
            answers=(
                *("nous les gosses", "dakota", "clos culombu", "dakota digital", "dakota"),
                *("dakota", "dakota digital", "dakota digital", "dakota", "dakota"),
            ),
            cluster="textvqa/003a8ae2ef43b901",
        ),
        Example(
            id="34603",
            images=(ref("textvqa/003a8ae2ef43b901"),),
            question="what does the small white text spell?",
            answers=("copenhagen",) * 10,
            cluster="textvqa/003a8ae2ef43b901",
        ),
    ]
    check_images(examples)
    assert colour(examples[0]) == RED


def test_the_test_split_has_no_answers_and_a_submission(tmp_path: Path) -> None:
    examples = read_textvqa(FOLDER / "TextVQA_0.5.1_test.json", FOLDER / "test_images")
    assert examples == [
        Example(
            id="39602",
            images=(ref("textvqa/00016c5a9ff8d5d4"),),
            question="what time is on the bottom of the clock?",
            cluster="textvqa/00016c5a9ff8d5d4",
        )
    ]
    assert colour(examples[0]) == GREEN
    path = tmp_path / "submission.json"
    write_vqa_submission(path, examples, {"39602": "12:15"})
    assert json.loads(path.read_text()) == [{"question_id": 39602, "answer": "12:15"}]


def test_malformed_records_and_missing_images_are_named(tmp_path: Path) -> None:
    path = edited(TRAIN, tmp_path / "t.json", lambda f: f["data"][1].update(answers="copenhagen"))
    with pytest.raises(ValueError, match=r"t.json: data\[1\]\.answers: .* got 'copenhagen'"):
        read_textvqa(path, FOLDER / "train_images")
    twice = edited(TRAIN, tmp_path / "t.json", lambda f: f["data"].append(f["data"][0]))
    with pytest.raises(ValueError, match="expected different ids, got '34602' twice"):
        read_textvqa(twice, FOLDER / "train_images")
    with pytest.raises(ValueError, match="003a8ae2ef43b901.jpg: .*1 of 1 images"):
        check_images(read_textvqa(TRAIN, FOLDER / "test_images"))
