"""What the readers share: places in errors, missing images, answers that do not fit."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import (
    check_images,
    check_unique,
    content_digest,
    image_file,
    image_ref,
    pair_answers,
    read_json,
    read_json_lines,
    read_json_records,
    read_json_table,
)
from flamingo.types import ImageRef


@dataclass(frozen=True, slots=True)
class Row:
    number: int
    text: str = "none"


@dataclass(frozen=True, slots=True)
class Table:
    rows: list[Row]


def _file(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def _example(name: str, *images: ImageRef) -> Example:
    return Example(id=name, images=images, question="?")


def test_other_fields_are_ignored_and_missing_ones_take_their_default(tmp_path: Path) -> None:
    content = '[{"number": 1, "text": "a", "more": [1]}, {"number": 2}]'
    assert read_json_records(_file(tmp_path / "a", content), Row) == [Row(1, "a"), Row(2)]


def test_a_table_keeps_its_order(tmp_path: Path) -> None:
    path = _file(tmp_path / "a", '{"z": {"number": 1}, "a": {"number": 2}}')
    assert list(read_json_table(path, Row).items()) == [("z", Row(1)), ("a", Row(2))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"rows": [{"number": 1}, {"number": "2"}]}', r"rows\[1\]\.number: .*integer, got '2'$"),
        ('{"rows": [{"number": 1.5}]}', r"rows\[0\]\.number: expected .*integer, got 1\.5$"),
        ('{"rows": [{"number": true}]}', r"rows\[0\]\.number: expected .*integer, got True$"),
        ('{"rows": [{"text": "a"}]}', r"rows\[0\]\.number: expected this field, found none$"),
        ('{"rows": [{"number": 1, "text": 2}]}', r"rows\[0\]\.text: expected .*string, got 2$"),
        ('{"row": []}', "rows: expected this field, found none$"),
        ("[]", r"expected an object, got \[\]$"),
        ('{"rows": [', "expected JSON; .*line 1 column 10"),
        ("", "expected JSON; "),
    ],
)
def test_a_malformed_file_is_named_with_the_record_and_the_field(
    tmp_path: Path, content: str, message: str
) -> None:
    path = _file(tmp_path / "broken.json", content)
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        read_json(path, Table)


def test_of_a_long_value_an_error_shows_the_beginning(tmp_path: Path) -> None:
    path = _file(tmp_path / "a", '[{"number": "' + "9" * 1000 + '"}]')
    with pytest.raises(ValueError) as error:
        read_json_records(path, Row)
    assert len(str(error.value)) < len(str(path)) + 200


def test_a_malformed_line_is_named_by_its_number(tmp_path: Path) -> None:
    good = _file(tmp_path / "a", '{"number": 1}\n\n{"number": 2}\n')
    assert read_json_lines(good, Row) == [Row(1), Row(2)]
    path = _file(tmp_path / "a.jsonl", '{"number": 1}\n\n{"number": "2"}\n')
    with pytest.raises(ValueError, match=rf"^{path}, line 3: number: expected .* got '2'$"):
        read_json_lines(path, Row)
    with pytest.raises(ValueError, match=r"line 1: expected JSON"):
        read_json_lines(_file(tmp_path / "b.jsonl", '{"number": 1'), Row)


def test_a_missing_annotation_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{tmp_path / 'no.json'}: expected a file, found none"):
        read_json(tmp_path / "no.json", Table)
    with pytest.raises(ValueError, match="expected a file, found a folder"):
        read_json(tmp_path, Table)


def test_ids_that_come_twice_are_an_error(tmp_path: Path) -> None:
    examples = [_example("a"), _example("b")]
    assert check_unique(examples, tmp_path) == examples
    with pytest.raises(ValueError, match=f"^{tmp_path}: expected different ids, got 'a' twice"):
        check_unique([*examples, _example("a")], tmp_path)


def test_an_image_is_opened_by_its_path_also_in_another_process(tmp_path: Path) -> None:
    Image.new("RGB", (2, 3), "red").save(tmp_path / "a.png")
    image = pickle.loads(pickle.dumps(image_ref("set/a", tmp_path, "a.png")))
    assert image.key == "set/a"
    assert image_file(image) == str(tmp_path / "a.png")
    assert image.open().size == (2, 3)


def test_the_content_of_an_image_is_that_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"abc")
    (tmp_path / "b.png").write_bytes(b"abc")
    first, copy = (image_ref(name, tmp_path, f"{name}.png") for name in "ab")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of FIPS 180-2
    assert content_digest(first) == content_digest(copy) == known
    assert content_digest(ImageRef("drawn", lambda: Image.new("RGB", (2, 2)))) == ""


def test_missing_images_are_counted_once_each_and_the_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.png").touch()
    (tmp_path / "here" / "folder.png").mkdir()
    here = image_ref("a", tmp_path, "here/a.png")
    folder = image_ref("folder", tmp_path, "here/folder.png")
    gone = image_ref("gone", tmp_path, "here/gone.png")
    nowhere = image_ref("nowhere", tmp_path, "there/a.png")
    in_memory = ImageRef("memory", lambda: Image.new("RGB", (1, 1)))

    check_images([_example("1", here), _example("2", here, in_memory), _example("3")])
    examples = [_example("1", here), _example("2", gone, nowhere), _example("3", gone, folder)]
    with pytest.raises(
        ValueError,
        match=f"^{tmp_path}/here/gone.png: no such image file; 3 of 4 images are missing$",
    ):
        check_images(examples)
    with pytest.raises(ValueError, match="there/a.png: .*; 1 of 2 images are missing$"):
        check_images([_example("1", here), _example("2", nowhere)])


def test_checking_images_opens_none_and_lists_a_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    for number in range(20):
        (tmp_path / f"{number}.png").touch()  # no image, as opening it would show
    examples = [_example(str(n), image_ref(str(n), tmp_path, f"{n}.png")) for n in range(20)]
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    check_images(examples * 3)
    assert listed == [str(tmp_path)]


def test_answers_come_in_the_order_of_the_examples() -> None:
    a, b = _example("a"), _example("b")
    assert pair_answers([a, b], {"b": 2, "a": 1}) == [(a, 1), (b, 2)]
    with pytest.raises(ValueError, match="each of the 2 questions, got 1 without.*such as 'b'$"):
        pair_answers([a, b], {"a": 1})
    with pytest.raises(ValueError, match="got 2 answers to no question, such as 'c'$"):
        pair_answers([a, b], {"a": 1, "b": 2, "d": 3, "c": 4})
