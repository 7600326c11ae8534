"""POPE in its published format."""

from __future__ import annotations

from pathlib import Path

import pytest

from flamingo.choices import POPESetting
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_images, check_unique
from flamingo.evaluation.benchmarks.pope import read_pope
from tests.evaluation.benchmarks.fixtures import BLUE, DATA, GREEN, colour, ref

FOLDER = DATA / "pope"
VAL = DATA / "coco/val2014"


def test_questions_are_answered_by_yes_or_no() -> None:
    examples = read_pope(FOLDER / "coco_pope_random.json", VAL, POPESetting.random)
    assert examples == [
        Example(
            id="random/1",
            images=(ref("pope/COCO_val2014_000000262148"),),
            question="Is there a snowboard in the image?",
            answers=("yes",),
            candidates=("no", "yes"),
            group="random",
            cluster="pope/COCO_val2014_000000262148",
        ),
        Example(
            id="random/2",
            images=(ref("pope/COCO_val2014_000000262148"),),
            question="Is there a dining table in the image?",
            answers=("no",),
            candidates=("no", "yes"),
            group="random",
            cluster="pope/COCO_val2014_000000262148",
        ),
    ]
    check_images(examples)
    assert colour(examples[0]) == GREEN


def test_settings_can_be_put_together() -> None:
    examples = [
        example
        for setting in (POPESetting.random, POPESetting.adversarial)
        for example in read_pope(FOLDER / f"coco_pope_{setting.value}.json", VAL, setting)
    ]
    assert [e.id for e in check_unique(examples, FOLDER)] == [
        "random/1",
        "random/2",
        "adversarial/1",
    ]
    assert colour(examples[2]) == BLUE


def test_questions_without_labels_have_no_answers(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"question_id": 7, "image": "a.jpg", "text": "Is there a cat?"}\n')
    (example,) = read_pope(path, tmp_path, POPESetting.popular)
    assert (example.id, example.answers, example.candidates) == ("popular/7", (), ("no", "yes"))


def test_malformed_records_and_missing_images_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"question_id": 1, "image": "a.jpg", "text": "Is there?", "label": "maybe"}\n')
    with pytest.raises(ValueError, match="p.json, line 1: label: expected 'yes' or 'no', got 'may"):
        read_pope(path, tmp_path, POPESetting.random)
    path.write_text('{"question_id": 1, "image": "a.jpg", "text": "Is there?", "label": "yes"}\n')
    with pytest.raises(ValueError, match="a.jpg: .*1 of 1 images"):
        check_images(read_pope(path, tmp_path, POPESetting.random))
