"""VQAv2 and OK-VQA in their published format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flamingo.choices import VQAGroup
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_images
from flamingo.evaluation.benchmarks.vqa import read_vqa, write_vqa_submission
from tests.evaluation.benchmarks.fixtures import DATA, GREEN, RED, colour, edited, ref

QUESTIONS = DATA / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = DATA / "vqav2/v2_mscoco_val2014_annotations.json"
TEST_QUESTIONS = DATA / "vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json"
VAL = DATA / "coco/val2014"


def _val(questions: Path = QUESTIONS, annotations: Path = ANNOTATIONS, images: Path = VAL):
    return read_vqa(questions, annotations, images, image_split="val2014", name="vqav2")


def _test() -> list[Example]:
    images = DATA / "coco/test2015"
    return read_vqa(TEST_QUESTIONS, None, images, image_split="test2015", name="vqav2")


def test_vqav2_questions_have_the_ten_answers_of_their_annotators() -> None:
    examples = _val()
    looking, sunny, bowls = examples
    assert looking == Example(
        id="262148000",
        images=(ref("vqav2/val2014/262148"),),
        question="Where is he looking?",
        answers=(
            *("down", "down", "at table", "skateboard", "down"),
            *("table", "down", "down", "down", "down"),
        ),
        group="other",
        cluster="vqav2/val2014/262148",
    )
    assert sunny == Example(
        id="262148001",
        images=(ref("vqav2/val2014/262148"),),
        question="Is this a sunny day?",
        answers=("yes",) * 10,
        group="yes/no",
        cluster="vqav2/val2014/262148",
    )
    assert bowls == Example(
        id="393225000",
        images=(ref("vqav2/val2014/393225"),),
        question="How many bowls are there?",
        answers=("2", "2", "two", "2", "2", "1", "2", "2", "2", "3"),
        group="number",
        cluster="vqav2/val2014/393225",
    )
    check_images(examples)
    assert colour(looking) == GREEN


def test_results_can_be_broken_down_by_the_words_of_the_question() -> None:
    examples = read_vqa(
        QUESTIONS,
        ANNOTATIONS,
        VAL,
        image_split="val2014",
        name="vqav2",
        group=VQAGroup.question_type,
    )
    assert [e.group for e in examples] == ["none of the above", "is this a", "how many"]


def test_ok_vqa_has_the_stemmed_answers_it_is_scored_by() -> None:
    (example,) = read_vqa(
        DATA / "okvqa/OpenEnded_mscoco_train2014_questions.json",
        DATA / "okvqa/mscoco_train2014_annotations.json",
        DATA / "coco/train2014",
        image_split="train2014",
        name="okvqa",
        group=VQAGroup.question_type,
    )
    assert example == Example(
        id="4587525",
        images=(ref("okvqa/train2014/458752"),),
        question="What sport can you use this for?",
        answers=("race",) * 4 + ("motocross",) * 2 + ("ride",) * 4,
        group="four",
        cluster="okvqa/train2014/458752",
    )
    assert colour(example) == RED


def test_the_test_split_has_no_answers_and_its_submission_all_predictions(tmp_path: Path) -> None:
    examples = _test()
    assert examples == [
        Example(
            id="262144000",
            images=(ref("vqav2/test2015/262144"),),
            question="Is the ball flying towards the batter?",
            cluster="vqav2/test2015/262144",
        ),
        Example(
            id="262144001",
            images=(ref("vqav2/test2015/262144"),),
            question="What sport is this?",
            cluster="vqav2/test2015/262144",
        ),
    ]
    check_images(examples)
    path = tmp_path / "results.json"
    write_vqa_submission(path, examples, {"262144001": "baseball", "262144000": "yes"})
    assert json.loads(path.read_text()) == [
        {"question_id": 262144000, "answer": "yes"},
        {"question_id": 262144001, "answer": "baseball"},
    ]
    with pytest.raises(ValueError, match="got 1 without an answer, such as '262144001'"):
        write_vqa_submission(path, examples, {"262144000": "yes"})


def test_questions_of_another_split_are_an_error() -> None:
    with pytest.raises(ValueError, match="image_split: expected 'val2014' as .* got 'train2014'"):
        read_vqa(QUESTIONS, ANNOTATIONS, VAL, image_split="train2014", name="vqav2")


def test_annotations_of_another_file_are_an_error(tmp_path: Path) -> None:
    fewer = edited(ANNOTATIONS, tmp_path / "fewer.json", lambda file: file["annotations"].pop())
    with pytest.raises(
        ValueError, match="fewer.json: .* 1 questions without annotations, .* 262148001$"
    ):
        _val(annotations=fewer)
    few = edited(QUESTIONS, tmp_path / "few.json", lambda file: file["questions"].pop())
    with pytest.raises(ValueError, match="1 annotations of unknown questions, .* 393225000$"):
        _val(questions=few)


def test_malformed_records_are_named(tmp_path: Path) -> None:
    path = edited(
        ANNOTATIONS, tmp_path / "a.json", lambda f: f["annotations"][1]["answers"][4].pop("answer")
    )
    with pytest.raises(ValueError, match=r"a.json: annotations\[1\]\.answers\[4\]\.answer: "):
        _val(annotations=path)
    path = edited(
        QUESTIONS, tmp_path / "q.json", lambda f: f["questions"][2].update(image_id="393225")
    )
    with pytest.raises(ValueError, match=r"q.json: questions\[2\]\.image_id: .* got '393225'"):
        _val(questions=path)


def test_missing_images_are_found_by_the_check_and_not_by_the_reader(tmp_path: Path) -> None:
    examples = _val(images=tmp_path)
    with pytest.raises(ValueError, match="COCO_val2014_000000262148.jpg: .*2 of 2 images"):
        check_images(examples)
