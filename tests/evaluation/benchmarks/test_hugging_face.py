"""Data sets of the ``datasets`` library, saved to a folder or as parquet."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_images, content_digest
from flamingo.evaluation.benchmarks.hugging_face import Columns, read_hugging_face
from tests.evaluation.benchmarks.fixtures import BLUE, DATA, GREEN, RED, YELLOW, colour, ref


def _png(name: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), {GREEN: "lime"}.get(name, name)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def _dataset(rows: dict[str, list[Any]], **features: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


TEXT = datasets.Value("string")


@pytest.fixture
def questions(tmp_path: Path) -> str:
    """Two splits in the shape of VQAv2, the second one without answers."""
    features = datasets.Features(
        image=datasets.Image(),
        question=TEXT,
        question_id=datasets.Value("int64"),
        image_id=datasets.Value("int64"),
        answers=[{"answer": TEXT, "answer_id": datasets.Value("int64")}],
        kind=datasets.ClassLabel(names=["yes/no", "other"]),
    )
    validation = datasets.Dataset.from_dict(
        {
            "image": [_png(RED), _png(RED), _png(GREEN)],
            "question": ["Is it red?", "What is it?", "Is it red?"],
            "question_id": [10, 11, 12],
            "image_id": [1, 1, 2],
            "answers": [
                [{"answer": "yes", "answer_id": 1}, {"answer": "yes", "answer_id": 2}],
                [{"answer": "square", "answer_id": 1}, {"answer": "a box", "answer_id": 2}],
                [{"answer": "no", "answer_id": 1}],
            ],
            "kind": [0, 1, 0],
        },
        features=features,
    )
    test = datasets.Dataset.from_dict(
        {
            "image": [_png(BLUE)],
            "question": ["Is it?"],
            "question_id": [20],
            "image_id": [3],
            "answers": [None],
            "kind": [-1],
        },
        features=features,
    )
    folder = tmp_path / "vqa"
    datasets.DatasetDict(validation=validation, test=test).save_to_disk(folder)
    return str(folder)


COLUMNS = Columns(id="question_id", group="kind", image_id="image_id")


def test_a_saved_folder_gives_the_columns_that_are_named(questions: str) -> None:
    examples = read_hugging_face(questions, "validation", COLUMNS, name="vqa")
    assert examples == [
        Example(
            id="10",
            images=(ref("vqa/validation/1"),),
            question="Is it red?",
            answers=("yes", "yes"),
            group="yes/no",
            cluster="vqa/validation/1",
        ),
        Example(
            id="11",
            images=(ref("vqa/validation/1"),),
            question="What is it?",
            answers=("square", "a box"),
            group="other",
            cluster="vqa/validation/1",
        ),
        Example(
            id="12",
            images=(ref("vqa/validation/2"),),
            question="Is it red?",
            answers=("no",),
            group="yes/no",
            cluster="vqa/validation/2",
        ),
    ]
    assert [colour(example) for example in examples] == [RED, RED, GREEN]
    check_images(examples)


def test_missing_annotations_give_no_answers_and_no_group(questions: str) -> None:
    assert read_hugging_face(questions, "test", COLUMNS, name="vqa") == [
        Example(
            id="20",
            images=(ref("vqa/test/3"),),
            question="Is it?",
            cluster="vqa/test/3",
        )
    ]


def test_without_ids_rows_are_numbered_and_have_images_of_their_own(questions: str) -> None:
    examples = read_hugging_face(questions, "validation", Columns(), name="vqa")
    assert [example.id for example in examples] == ["0", "1", "2"]
    assert [example.cluster for example in examples] == [f"vqa/validation/{n}" for n in range(3)]


def test_images_are_decoded_when_they_are_opened_also_in_another_process(tmp_path: Path) -> None:
    broken = {"bytes": b"no image", "path": None}
    table = _dataset({"image": [_png(RED), broken]}, image=datasets.Image())
    table.save_to_disk(tmp_path / "d")
    columns = Columns(question="", answers="")
    examples = read_hugging_face(str(tmp_path / "d"), "train", columns, name="d")
    assert colour(pickle.loads(pickle.dumps(examples[0]))) == RED
    with pytest.raises(ValueError, match="d/train/1: expected an image, got 8 bytes"):
        examples[1].images[0].open()


def test_images_may_be_files_that_the_table_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "d" / "validation"  # an "image folder" of the library
    folder.mkdir(parents=True)
    shutil.copy(DATA / "hateful_memes/img/16395.png", folder / "a.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "question": "What?"}\n')
    columns = Columns(answers="")
    (example,) = read_hugging_face(str(tmp_path / "d"), "validation", columns, name="d")
    assert example.question == "What?"
    assert colour(example) == BLUE
    (folder / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="d/validation/0: no such image file"):
        example.images[0].open()


def test_the_content_of_an_image_is_that_of_its_bytes_in_the_table(questions: str) -> None:
    first, again, other = (
        example.images[0]
        for example in read_hugging_face(questions, "validation", COLUMNS, name="q")
    )
    assert content_digest(first) == hashlib.sha256(_png(RED)["bytes"]).hexdigest()
    assert content_digest(first) == content_digest(again) != content_digest(other)


def test_class_labels_are_answers_with_all_names_to_choose_from(tmp_path: Path) -> None:
    names = ["cat", "dog", "owl"]
    table = _dataset(
        {"image": [_png(RED), _png(GREEN)], "label": [2, -1]},
        image=datasets.Image(),
        label=datasets.ClassLabel(names=names),
    )
    table.save_to_disk(tmp_path / "pets")
    columns = Columns(question="", answers="label")
    examples = read_hugging_face(str(tmp_path / "pets"), "train", columns, name="pets")
    assert [example.answers for example in examples] == [("owl",), ()]
    assert [example.candidates for example in examples] == [("cat", "dog", "owl")] * 2


def test_a_row_may_have_several_images_or_none(tmp_path: Path) -> None:
    table = _dataset(
        {"images": [[_png(RED), _png(YELLOW)], [], None], "question": ["a", "b", None]},
        images=datasets.List(datasets.Image()),
        question=TEXT,
    )
    table.save_to_disk(tmp_path / "d")
    columns = Columns(image="images", answers="")
    both, none, null = read_hugging_face(str(tmp_path / "d"), "train", columns, name="d")
    assert both.images == (ref("d/train/0/0"), ref("d/train/0/1"))
    assert both.cluster == "d/train/0/0"
    assert [colour(both, 0), colour(both, 1)] == [RED, YELLOW]
    assert (none.images, none.cluster, null.images, null.question) == ((), "", (), "")


def test_parquet_files_are_read_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = _dataset(
        {"image": [_png(YELLOW)], "question": ["What colour?"], "answers": [["yellow", "gold"]]},
        image=datasets.Image(),
        question=TEXT,
        answers=datasets.List(TEXT),
    )
    (tmp_path / "d").mkdir()
    table.to_parquet(tmp_path / "d" / "validation-00000-of-00001.parquet")
    (example,) = read_hugging_face(str(tmp_path / "d"), "validation", Columns(), name="d")
    assert example == Example(
        id="0",
        images=(ref("d/validation/0"),),
        question="What colour?",
        answers=("yellow", "gold"),
        cluster="d/validation/0",
    )
    assert colour(example) == YELLOW


def test_columns_and_splits_that_are_not_there_are_named(questions: str) -> None:
    for columns, message in (
        (Columns(answers="answer"), "columns.answers: expected one of .*, got 'answer'"),
        (Columns(image=""), "columns.image: expected one of .*, got ''"),
        (Columns(image="question"), "column 'question': expected images, got Value"),
    ):
        with pytest.raises(ValueError, match=message):
            read_hugging_face(questions, "validation", columns, name="vqa")
    with pytest.raises(ValueError, match=r"the splits \['validation', 'test'\], got 'train'"):
        read_hugging_face(questions, "train", COLUMNS, name="vqa")


@pytest.mark.parametrize("saved", ["train", "train[:1]"])
def test_a_folder_that_says_which_split_it_is_is_no_other(tmp_path: Path, saved: str) -> None:
    rows = {"image": [_png(RED)], "question": ["a"], "answers": ["b"]}
    features = datasets.Features(image=datasets.Image(), question=TEXT, answers=TEXT)
    split = datasets.NamedSplit(saved)
    datasets.Dataset.from_dict(rows, features, split=split).save_to_disk(tmp_path / "d")
    (example,) = read_hugging_face(str(tmp_path / "d"), "train", Columns(), name="d")
    assert example.answers == ("b",)
    with pytest.raises(ValueError, match="the split 'validation', got a folder of 'train' alone"):
        read_hugging_face(str(tmp_path / "d"), "validation", Columns(), name="d")


def test_a_cell_of_another_type_is_named_by_its_row(tmp_path: Path) -> None:
    table = _dataset(
        {"image": [_png(RED)] * 2, "question": ["a", "b"], "answers": [[1.0], [2.0]]},
        image=datasets.Image(),
        question=TEXT,
        answers=datasets.List(datasets.Value("float32")),
    )
    table.save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match="row 0: answers: expected texts .*, got 1.0"):
        read_hugging_face(str(tmp_path / "d"), "train", Columns(), name="d")
