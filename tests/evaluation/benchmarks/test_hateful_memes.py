"""Hateful Memes in its published format."""

from __future__ import annotations

from pathlib import Path

import pytest

from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_images
from flamingo.evaluation.benchmarks.hateful_memes import (
    read_hateful_memes,
    write_hateful_memes_submission,
)
from flamingo.evaluation.benchmarks.submissions import of_probabilities
from flamingo.evaluation.predictions import Prediction
from tests.evaluation.benchmarks.fixtures import BLUE, DATA, GREEN, RED, colour, ref

FOLDER = DATA / "hateful_memes"


def test_memes_are_questions_of_their_text_answered_by_yes_or_no() -> None:
    examples = read_hateful_memes(FOLDER / "dev_seen.jsonl", FOLDER)
    assert examples == [
        Example(
            id="8291",
            images=(ref("hateful_memes/08291"),),
            question="when you see a spider and then you do not",
            answers=("yes",),
            candidates=("no", "yes"),
            cluster="hateful_memes/08291",
        ),
        Example(
            id="42953",
            images=(ref("hateful_memes/42953"),),
            question="its their character not their color that matters",
            answers=("no",),
            candidates=("no", "yes"),
            cluster="hateful_memes/42953",
        ),
    ]
    check_images(examples)
    assert [colour(example) for example in examples] == [GREEN, RED]


def test_the_test_split_has_no_labels_and_is_submitted_as_probabilities(tmp_path: Path) -> None:
    examples = read_hateful_memes(FOLDER / "test_seen.jsonl", FOLDER)
    assert examples == [
        Example(
            id="16395",
            images=(ref("hateful_memes/16395"),),
            question="batteries sold separately",
            candidates=("no", "yes"),
            cluster="hateful_memes/16395",
        )
    ]
    assert colour(examples[0]) == BLUE
    path = tmp_path / "submission.csv"
    write_hateful_memes_submission(path, examples, {"16395": 0.75})
    assert path.read_bytes() == b"id,proba,label\n16395,0.75,1\n"
    write_hateful_memes_submission(path, examples, {"16395": 0.5})
    assert path.read_bytes() == b"id,proba,label\n16395,0.5,0\n"
    with pytest.raises(ValueError, match="probability of '16395': expected .*, got 1.5"):
        write_hateful_memes_submission(path, examples, {"16395": 1.5})


def said(id: str, answer: str, probability: float) -> Prediction:
    return Prediction(
        key=id,
        model="m",
        query=f"test/{id}",
        shots=0,
        demonstrations=[],
        prompt_hash="",
        prompt="",
        candidates=["no", "yes"],
        raw=answer,
        answer=answer,
        target="",
        probability=probability,
        score=None,
        group="",
        cluster="",
    )


def test_whatever_was_answered_the_probability_of_yes_is_submitted(tmp_path: Path) -> None:
    test = [Example(id, (), "", candidates=("no", "yes")) for id in ("1", "2", "3")]
    submit = of_probabilities(write_hateful_memes_submission, test)
    # In the order of the data set; one meme was not asked.
    path = submit(tmp_path / "memes", [said("3", "no", 0.75), said("1", "yes", 0.625)])
    assert path == tmp_path / "memes.csv"
    assert path.read_bytes() == b"id,proba,label\n1,0.625,1\n3,0.25,0\n"


def test_malformed_records_and_missing_images_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": 1, "img": "img/1.png", "label": 2, "text": "a"}\n')
    with pytest.raises(ValueError, match=r"m.jsonl, line 1: label: expected 0 or 1, got 2"):
        read_hateful_memes(path, FOLDER)
    with pytest.raises(ValueError, match="img/08291.png: .*2 of 2 images"):
        check_images(read_hateful_memes(FOLDER / "dev_seen.jsonl", tmp_path))
