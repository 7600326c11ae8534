"""CLEVR: questions about rendered scenes; by kind of question, counting alone, or the whole scene.

Johnson et al. 2017, "CLEVR: A Diagnostic Dataset" (cs.stanford.edu/people/jcjohns/clevr). The
labels of the test split were never published, and there is no server for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator

from flamingo.choices import CLEVRGroup
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import Records, check_unique, image_ref, read_json
from flamingo.types import ImageRef

COUNTS = tuple(str(number) for number in range(3, 11))
"""CLEVR's scenes have three to ten objects."""
COUNT_QUESTION = "How many objects are there?"


@dataclass(frozen=True, slots=True)
class _Step:
    function: str | None = None
    type: str | None = None
    """What the generator's own files call ``function``."""


def _last(steps: list[_Step]) -> list[_Step]:
    return steps[-1:]


@dataclass(frozen=True, slots=True)
class _Question:
    image_filename: str
    question: str
    answer: str | None = None
    question_index: int | None = None
    question_family_index: int | None = None
    program: Annotated[list[_Step], AfterValidator(_last)] | None = None
    """Cut to the last step when it is read: there are ten million in the training split."""


@dataclass(frozen=True, slots=True)
class _Questions:
    questions: Records[_Question]


@dataclass(frozen=True, slots=True)
class _Scene:
    image_filename: str
    objects: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Scenes:
    scenes: Records[_Scene]


def read_clevr(
    questions: Path,
    images: Path,
    *,
    group: CLEVRGroup = CLEVRGroup.question_type,
    counting: bool = False,
) -> list[Example]:
    """The questions of ``CLEVR_{split}_questions.json`` (test: without answers and groups).

    ``images`` is the split's own folder. ``counting``: only the questions whose last step is
    ``count``. An example's id is its ``question_index``, or its place in the file without one;
    images are keyed ``clevr/CLEVR_val_000000``.

    Raises ``ValueError`` for a malformed file, a program that ends in an unknown step, and
    ``counting`` where there are no programs (test).
    """
    examples = []
    for place, row in enumerate(read_json(questions, _Questions).questions):
        where = f"{questions}: questions[{place}]"
        kind = _question_type(row, where)
        if counting and not kind:
            raise ValueError(f"{where}.program: expected one to find counting by, found none")
        if counting and kind != "count":
            continue
        image = _image(images, row.image_filename)
        examples.append(
            Example(
                id=str(place if row.question_index is None else row.question_index),
                images=(image,),
                question=row.question,
                answers=() if row.answer is None else (row.answer,),
                group=_group(row, kind, group),
                cluster=image.key,
            )
        )
    return check_unique(examples, questions)


def read_clevr_scenes(scenes: Path, images: Path) -> list[Example]:
    """How many objects each scene of ``CLEVR_{split}_scenes.json`` has (VTAB's CLEVR-count).

    One question a scene (Zhai et al. 2019), its eight answers the candidates. An example's id is
    its image's name without suffix; images are keyed as in :func:`read_clevr`. Raises
    ``ValueError`` for a malformed file and for a number of objects that CLEVR does not have.
    """
    examples = []
    for place, row in enumerate(read_json(scenes, _Scenes).scenes):
        count = str(len(row.objects))
        if count not in COUNTS:
            raise ValueError(f"{scenes}: scenes[{place}].objects: expected 3 to 10, got {count}")
        image = _image(images, row.image_filename)
        examples.append(
            Example(
                id=PurePosixPath(row.image_filename).stem,
                images=(image,),
                question=COUNT_QUESTION,
                answers=(count,),
                candidates=COUNTS,
                cluster=image.key,
            )
        )
    return check_unique(examples, scenes)


def _image(images: Path, name: str) -> ImageRef:
    return image_ref(f"clevr/{PurePosixPath(name).stem}", images, name)


def _group(row: _Question, question_type: str, group: CLEVRGroup) -> str:
    match group:
        case CLEVRGroup.question_type:
            return question_type
        case CLEVRGroup.question_family:
            family = row.question_family_index
            return "" if family is None else str(family)


def _question_type(row: _Question, where: str) -> str:
    """From the last step of the program; "" without a program."""
    if not row.program:
        return ""
    last = row.program[-1].function or row.program[-1].type or ""
    for question_type, functions in _LAST_STEPS.items():
        if last in functions:
            return question_type
    raise ValueError(f"{where}.program: expected the last step of a question, got {last!r}")


_ATTRIBUTES = ("size", "color", "material", "shape")
_LAST_STEPS: dict[str, Sequence[str]] = {
    "exist": ("exist",),
    "count": ("count",),
    "compare_integer": ("equal_integer", "less_than", "greater_than"),
    "query": [f"query_{attribute}" for attribute in _ATTRIBUTES],
    "compare_attribute": [f"equal_{attribute}" for attribute in _ATTRIBUTES],
}
