"""Classes as folders of images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_images
from flamingo.evaluation.benchmarks.image_folder import read_image_folder, read_unlabelled_images
from tests.evaluation.benchmarks.fixtures import BLUE, DATA, GREEN, RED, YELLOW, colour, ref

FOLDER = DATA / "image_folder"
NAMES = FOLDER / "class_names.json"


def _image(file: str, label: str) -> Example:
    return Example(
        id=file,
        images=(ref(f"imagenet/val/{file}"),),
        question="",
        answers=(label,),
        candidates=("tench", "rooster"),
        cluster=f"imagenet/val/{file}",
    )


def test_images_have_the_name_of_their_class_and_all_classes_to_choose_from() -> None:
    examples = read_image_folder(FOLDER / "val", name="imagenet/val", class_names=NAMES)
    assert examples == [
        _image("n01440764/ILSVRC2012_val_00000293.JPEG", "tench"),
        _image("n01440764/ILSVRC2012_val_00002138.JPEG", "tench"),
        _image("n01514668/ILSVRC2012_val_00000329.JPEG", "rooster"),
    ]
    check_images(examples)
    assert [colour(example) for example in examples] == [RED, GREEN, BLUE]


def test_without_names_classes_are_called_as_their_folders() -> None:
    examples = read_image_folder(FOLDER / "val", name="imagenet/val")
    assert examples[2].answers == ("n01514668",)
    assert examples[2].candidates == ("n01440764", "n01514668")


def test_a_test_split_is_a_folder_of_images_without_answers() -> None:
    examples = read_unlabelled_images(FOLDER / "test", ["tench", "rooster"], name="imagenet/test")
    assert examples == [
        Example(
            id="ILSVRC2012_test_00000001.JPEG",
            images=(ref("imagenet/test/ILSVRC2012_test_00000001.JPEG"),),
            question="",
            candidates=("tench", "rooster"),
            cluster="imagenet/test/ILSVRC2012_test_00000001.JPEG",
        )
    ]
    assert colour(examples[0]) == YELLOW


def test_hidden_files_are_ignored_and_all_others_must_be_images(tmp_path: Path) -> None:
    for file in ("cat/1.png", "cat/.DS_Store", ".hidden/1.txt", "dog/1.webp"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    examples = read_image_folder(tmp_path, name="pets")
    assert [example.id for example in examples] == ["cat/1.png", "dog/1.webp"]
    (tmp_path / "dog/notes.txt").touch()
    with pytest.raises(ValueError, match=f"^{tmp_path}/dog: .* 1 other .* such as 'notes.txt'$"):
        read_image_folder(tmp_path, name="pets")


def test_places_without_classes_or_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: expected a directory, found none"):
        read_image_folder(tmp_path / "nowhere", name="pets")
    with pytest.raises(ValueError, match="expected one sub-directory a class, found none"):
        read_image_folder(tmp_path, name="pets")
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match=f"^{tmp_path}/cat: expected images alone, found none"):
        read_image_folder(tmp_path, name="pets")


def test_every_class_needs_a_name_of_its_own(tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    for content, message in (
        ({"n01440764": "tench"}, "found none for 1, such as 'n01514668'"),
        ({"n01440764": "a", "n01514668": "a"}, "got 'a' for 'n01440764' and 'n01514668'"),
        ({"n01440764": 1}, "n01440764: expected a valid string, got 1"),
    ):
        names.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"^{names}: .*{message}$"):
            read_image_folder(FOLDER / "val", name="imagenet/val", class_names=names)
