"""VL-ICL Bench in its published format: queries, and what may demonstrate each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flamingo.choices import VLICLTask
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_images
from flamingo.evaluation.benchmarks.vl_icl import read_vl_icl
from tests.evaluation.benchmarks.fixtures import BLUE, DATA, GREEN, RED, YELLOW, colour, edited, ref

FOLDER = DATA / "vl_icl"
EXPRESSION = "What is the result of the following mathematical expression?"


def _example(name: str, image: str, question: str, answer: str, **more) -> Example:
    key = f"vl_icl/{image}"
    return Example(
        id=name, images=(ref(key),), question=question, answers=(answer,), cluster=key, **more
    )


def test_a_binding_query_brings_the_images_of_its_classes() -> None:
    task = read_vl_icl(FOLDER, VLICLTask.open_mi)
    image = "open_mi/images/{}.jpg".format
    assert task.queries == [
        _example("query/0", image(0), "This is a", "dax", candidates=("blicket", "dax"))
    ]
    assert task.support == [
        _example("query/0/blicket/0", image(3), "This is a", "blicket"),
        _example("query/0/blicket/1", image(0), "This is a", "blicket"),
        _example("query/0/dax/0", image(1), "This is a", "dax"),
        _example("query/0/dax/1", image(2), "This is a", "dax"),
    ]
    assert task.pools == {
        "query/0": (
            ("query/0/blicket/0", "query/0/blicket/1"),
            ("query/0/dax/0", "query/0/dax/1"),
        )
    }
    check_images(task.queries + task.support)
    assert [colour(example) for example in task.support] == [YELLOW, RED, GREEN, BLUE]


def test_demonstrations_of_an_operator_have_the_answer_of_the_query_s_operator() -> None:
    task = read_vl_icl(FOLDER, VLICLTask.operator_induction)
    query, shown = "operator_induction/images/3_7.png", "operator_induction/images/2_5.png"
    assert task.queries == [
        _example("query/0", query, EXPRESSION, "10", group="+"),
        _example("query/1", query, EXPRESSION, "-4", group="-"),
    ]
    assert task.support == [
        _example("support/0/+", shown, EXPRESSION, "7", group="+"),
        _example("support/0/-", shown, EXPRESSION, "-3", group="-"),
        _example("support/0/x", shown, EXPRESSION, "10", group="x"),
    ]
    assert task.pools == {"query/0": (("support/0/+",),), "query/1": (("support/0/-",),)}
    check_images(task.queries + task.support)


@pytest.mark.parametrize(
    ("name", "query", "support"),
    [
        (
            VLICLTask.clevr,
            _example("query/0", "clevr/images/CLEVR_val_000010.png", "shape: sphere", "3"),
            _example("support/0", "clevr/images/CLEVR_train_000020.png", "color: red", "1"),
        ),
        (
            VLICLTask.textocr,
            _example(
                "query/0", "textocr/images/0a1.jpg", "What text is shown in the red box?", "EXIT"
            ),
            _example(
                "support/0", "textocr/images/0b2.jpg", "What text is shown in the red box?", "Open"
            ),
        ),
    ],
)
def test_any_support_demonstrates_counting_and_reading(
    name: VLICLTask, query: Example, support: Example
) -> None:
    task = read_vl_icl(FOLDER, name)
    assert (task.queries, task.support) == ([query], [support])
    assert task.pools == {"query/0": (("support/0",),)}
    check_images(task.queries + task.support)
    assert [colour(task.queries[0]), colour(task.support[0])] == [RED, GREEN]


def test_several_images_stay_in_their_order(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "clevr", tmp_path / "clevr")
    edited(
        FOLDER / "clevr/query.json",
        tmp_path / "clevr/query.json",
        lambda rows: rows[0].update(image=["b.png", "a.png"]),
    )
    (query,) = read_vl_icl(tmp_path, VLICLTask.clevr).queries
    assert query.images == (ref("vl_icl/b.png"), ref("vl_icl/a.png"))
    assert query.cluster == "vl_icl/b.png"
    with pytest.raises(ValueError, match="b.png: .*2 of 2 images"):
        check_images([query])


@pytest.mark.parametrize(
    ("task", "file", "change", "message"),
    [
        ("clevr", "query", {"answer": 1.5}, r"query.json: \[0\]\.answer\S*: expected .* got 1\.5"),
        ("textocr", "support", {"image": 3}, r"support.json: \[0\]\.image\S*: expected .* got 3"),
        ("operator_induction", "query", {"operator": "/"}, r"\[0\]\.operator: .* got '/'"),
        ("operator_induction", "support", {"answer": [1, 2]}, r"\[0\]\.answer: .* got \[1, 2\]"),
        ("open_mi", "query", {"answer": "wug"}, r"\[0\]\.answer: .* got 'wug'"),
        ("open_mi", "query", {"support": {}}, r"\[0\]\.support: expected images of 'blicket'"),
    ],
)
def test_malformed_records_are_named(
    tmp_path: Path, task: str, file: str, change: dict[str, object], message: str
) -> None:
    shutil.copytree(FOLDER / task, tmp_path / task)
    path = tmp_path / task / f"{file}.json"
    edited(path, path, lambda rows: rows[0].update(change))
    with pytest.raises(ValueError, match=message):
        read_vl_icl(tmp_path, VLICLTask(task))
