"""VizWiz-VQA: questions that blind people asked about their photographs, ten answers each.

Gurari et al. 2018, "VizWiz Grand Challenge" (vizwiz.org/tasks-and-datasets/vqa).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import (
    check_unique,
    image_ref,
    pair_answers,
    read_json_records,
    write_json,
)


@dataclass(frozen=True, slots=True)
class _Answer:
    answer: str


@dataclass(frozen=True, slots=True)
class _Question:
    image: str
    question: str
    answers: list[_Answer] | None = None
    answer_type: str | None = None


def read_vizwiz(annotations: Path, images: Path) -> list[Example]:
    """The questions of ``train.json``, ``val.json`` or ``test.json`` (without answers).

    ``images`` is the folder of the split's photographs. There is one question a photograph: an
    example's id is its file name, its image is keyed ``vizwiz/VizWiz_val_00000000``. The group is
    the answer type (``yes/no``, ``number``, ``other``, ``unanswerable``). Raises ``ValueError`` for
    a malformed file.
    """
    examples = []
    for row in read_json_records(annotations, _Question):
        image = image_ref(f"vizwiz/{PurePosixPath(row.image).stem}", images, row.image)
        examples.append(
            Example(
                id=row.image,
                images=(image,),
                question=row.question,
                answers=tuple(answer.answer for answer in row.answers or ()),
                group=row.answer_type or "",
                cluster=image.key,
            )
        )
    return check_unique(examples, annotations)


def write_vizwiz_submission(
    path: Path, examples: Sequence[Example], answers: Mapping[str, str]
) -> None:
    """``[{"image": "VizWiz_test_00000000.jpg", "answer": "..."}]``, as the server wants it.

    Raises ``ValueError`` unless there is exactly one answer, by id, for each example.
    """
    rows = [{"image": e.id, "answer": answer} for e, answer in pair_answers(examples, answers)]
    write_json(path, rows)
