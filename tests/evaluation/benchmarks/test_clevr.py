"""CLEVR in its published format: kinds of questions, counting alone, and whole scenes."""

from __future__ import annotations

from pathlib import Path

import pytest

from flamingo.choices import CLEVRGroup
from flamingo.evaluation.benchmarks.clevr import read_clevr, read_clevr_scenes
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_images
from tests.evaluation.benchmarks.fixtures import BLUE, DATA, GREEN, RED, colour, edited, ref

FOLDER = DATA / "clevr"
VAL = FOLDER / "CLEVR_val_questions.json"
TEST = FOLDER / "CLEVR_test_questions.json"
IMAGES = FOLDER / "images/val"


def _question(number: int, image: int, question: str, answer: str, group: str) -> Example:
    key = f"clevr/CLEVR_val_{image:06d}"
    return Example(
        id=str(number),
        images=(ref(key),),
        question=question,
        answers=(answer,),
        group=group,
        cluster=key,
    )


def test_questions_are_of_the_five_kinds_of_the_paper() -> None:
    examples = read_clevr(VAL, IMAGES)
    assert examples == [
        _question(0, 0, "Are there any large things?", "no", "exist"),
        _question(1, 0, "What number of cubes are there?", "2", "count"),
        _question(2, 1, "Are there more cubes than spheres?", "yes", "compare_integer"),
        _question(3, 1, "What color is the sphere?", "cyan", "query"),
        _question(
            4,
            1,
            "Are the cube and the sphere made of the same material?",
            "yes",
            "compare_attribute",
        ),
    ]
    check_images(examples)
    assert [colour(examples[0]), colour(examples[4])] == [RED, GREEN]


def test_results_can_be_broken_down_by_question_family() -> None:
    examples = read_clevr(VAL, IMAGES, group=CLEVRGroup.question_family)
    assert [example.group for example in examples] == ["11", "86", "1", "79", "49"]


def test_counting_keeps_the_questions_whose_last_step_counts() -> None:
    (example,) = read_clevr(VAL, IMAGES, counting=True)
    assert example == _question(1, 0, "What number of cubes are there?", "2", "count")


def test_the_test_split_has_neither_answers_nor_kinds() -> None:
    examples = read_clevr(TEST, FOLDER / "images/test")
    assert examples == [
        Example(
            id="0",
            images=(ref("clevr/CLEVR_test_000000"),),
            question="Is there anything else that is the same shape as the small brown matte "
            "object?",
            cluster="clevr/CLEVR_test_000000",
        )
    ]
    assert colour(examples[0]) == BLUE
    with pytest.raises(ValueError, match=r"questions\[0\]\.program: expected one to find counting"):
        read_clevr(TEST, IMAGES, counting=True)


def test_a_scene_is_asked_for_its_number_of_objects() -> None:
    examples = read_clevr_scenes(FOLDER / "CLEVR_val_scenes.json", IMAGES)
    assert examples == [
        Example(
            id="CLEVR_val_000000",
            images=(ref("clevr/CLEVR_val_000000"),),
            question="How many objects are there?",
            answers=("3",),
            candidates=("3", "4", "5", "6", "7", "8", "9", "10"),
            cluster="clevr/CLEVR_val_000000",
        )
    ]


def test_malformed_records_and_missing_images_are_named(tmp_path: Path) -> None:
    path = edited(VAL, tmp_path / "c.json", lambda f: f["questions"][3].update(answer=3))
    with pytest.raises(ValueError, match=r"c.json: questions\[3\]\.answer: expected .* got 3$"):
        read_clevr(path, IMAGES)
    path = edited(VAL, tmp_path / "c.json", lambda f: f["questions"][3]["program"].pop())
    with pytest.raises(ValueError, match=r"questions\[3\]\.program: expected .* got 'unique'"):
        read_clevr(path, IMAGES)
    scenes = FOLDER / "CLEVR_val_scenes.json"
    path = edited(scenes, tmp_path / "s.json", lambda f: f["scenes"][0]["objects"].pop())
    with pytest.raises(ValueError, match=r"scenes\[0\]\.objects: expected 3 to 10, got 2"):
        read_clevr_scenes(path, IMAGES)
    with pytest.raises(ValueError, match="CLEVR_val_000000.png: .*2 of 2 images"):
        check_images(read_clevr(VAL, tmp_path))
