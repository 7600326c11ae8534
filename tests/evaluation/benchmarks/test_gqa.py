"""GQA in its published format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flamingo.choices import GQAGroup
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_images
from flamingo.evaluation.benchmarks.gqa import read_gqa, write_gqa_submission
from tests.evaluation.benchmarks.fixtures import DATA, GREEN, RED, colour, edited, ref

FOLDER = DATA / "gqa"
VAL = FOLDER / "val_balanced_questions.json"
IMAGES = FOLDER / "images"


def test_questions_have_one_answer_and_their_structural_type() -> None:
    examples = read_gqa(VAL, IMAGES)
    assert examples == [
        Example(
            id="05451384",
            images=(ref("gqa/2354786"),),
            question="Is the shirt blue or red?",
            answers=("blue",),
            group="choose",
            cluster="gqa/2354786",
        ),
        Example(
            id="05451385",
            images=(ref("gqa/n161313"),),
            question="Is there a chair in the image?",
            answers=("no",),
            group="verify",
            cluster="gqa/n161313",
        ),
    ]
    check_images(examples)
    assert [colour(example) for example in examples] == [RED, GREEN]


def test_results_can_be_broken_down_by_the_other_types() -> None:
    semantic = read_gqa(VAL, IMAGES, group=GQAGroup.semantic)
    assert [example.group for example in semantic] == ["attr", "obj"]
    detailed = read_gqa(VAL, IMAGES, group=GQAGroup.detailed)
    assert [example.group for example in detailed] == ["chooseAttr", "existC"]


def test_a_split_in_parts_is_read_as_a_folder(tmp_path: Path) -> None:
    examples = read_gqa(FOLDER / "train_all_questions", IMAGES)
    assert [(e.id, e.answers) for e in examples] == [
        ("00000002", ("pipe",)),
        ("00000001", ("yes",)),
    ]
    with pytest.raises(ValueError, match=r"expected files ending in \.json, found none"):
        read_gqa(tmp_path, IMAGES)


def test_the_submission_file_has_no_answers_and_gets_predictions(tmp_path: Path) -> None:
    examples = read_gqa(FOLDER / "submission_all_questions.json", IMAGES)
    assert examples == [
        Example(
            id="201971873",
            images=(ref("gqa/n161313"),),
            question="Is it overcast?",
            cluster="gqa/n161313",
        ),
        Example(
            id="201640614",
            images=(ref("gqa/2354786"),),
            question="Who is wearing the dress?",
            cluster="gqa/2354786",
        ),
    ]
    path = tmp_path / "submission.json"
    write_gqa_submission(path, examples, {"201971873": "no", "201640614": "woman"})
    assert json.loads(path.read_text()) == [
        {"questionId": "201971873", "prediction": "no"},
        {"questionId": "201640614", "prediction": "woman"},
    ]


def test_malformed_records_and_missing_images_are_named(tmp_path: Path) -> None:
    path = edited(VAL, tmp_path / "g.json", lambda f: f["05451385"].update(imageId=161313))
    with pytest.raises(ValueError, match=r"g.json: 05451385\.imageId: expected .* got 161313"):
        read_gqa(path, IMAGES)
    with pytest.raises(ValueError, match="2354786.jpg: .*2 of 2 images"):
        check_images(read_gqa(VAL, tmp_path))
