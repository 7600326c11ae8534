"""VQAv2 and OK-VQA: questions on COCO images with ten answers each, in the format of the VQA API.

Goyal et al. 2017, "Making the V in VQA Matter" (visualqa.org); Marino et al. 2019, "OK-VQA"
(okvqa.allenai.org).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flamingo.choices import VQAGroup
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import (
    Records,
    check_unique,
    image_ref,
    pair_answers,
    read_json,
    write_json,
)


@dataclass(frozen=True, slots=True)
class _Question:
    image_id: int
    question: str
    question_id: int


@dataclass(frozen=True, slots=True)
class _Questions:
    questions: Records[_Question]
    data_subtype: str | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    answer: str


@dataclass(frozen=True, slots=True)
class _Annotation:
    question_id: int
    question_type: str
    answer_type: str
    answers: list[_Answer]


@dataclass(frozen=True, slots=True)
class _Annotations:
    annotations: Records[_Annotation]


def read_vqa(
    questions: Path,
    annotations: Path | None,
    images: Path,
    *,
    image_split: str,
    name: str,
    group: VQAGroup = VQAGroup.answer_type,
) -> list[Example]:
    """The questions of one file, in its order, with the answers in the annotators' order.

    ``images`` is the folder of ``COCO_{image_split}_{image_id:012d}.jpg``; ``image_split`` is
    ``train2014``, ``val2014`` or ``test2015`` (test-dev too), and images are keyed
    ``{name}/{image_split}/{image_id}``. Without ``annotations`` (test) there are no answers and no
    groups. OK-VQA's answers are the stemmed ones (``answer``, not ``raw_answer``), by which it is
    scored. An example's id is its ``question_id``.

    Raises ``ValueError`` for a malformed file, for questions of another split, and for questions
    without annotations or the reverse.
    """
    asked = read_json(questions, _Questions)
    declared = asked.data_subtype
    if declared is not None and declared.replace("test-dev", "test") != image_split:
        raise ValueError(
            f"image_split: expected {declared!r} as {questions} says, got {image_split!r}"
        )
    known = {} if annotations is None else _read_annotations(annotations, asked.questions)
    refs = {
        image_id: image_ref(
            f"{name}/{image_split}/{image_id}", images, f"COCO_{image_split}_{image_id:012d}.jpg"
        )
        for image_id in {question.image_id for question in asked.questions}
    }
    examples = []
    for question in asked.questions:
        annotation = known.get(question.question_id)
        image = refs[question.image_id]
        examples.append(
            Example(
                id=str(question.question_id),
                images=(image,),
                question=question.question,
                answers=tuple(a.answer for a in annotation.answers) if annotation else (),
                group=_group(annotation, group) if annotation else "",
                cluster=image.key,
            )
        )
    return check_unique(examples, questions)


def _read_annotations(path: Path, questions: Sequence[_Question]) -> dict[int, _Annotation]:
    annotations = {a.question_id: a for a in read_json(path, _Annotations).annotations}
    ids = {question.question_id for question in questions}
    for what, odd in (
        ("questions without annotations", ids - annotations.keys()),
        ("annotations of unknown questions", annotations.keys() - ids),
    ):
        if odd:
            raise ValueError(
                f"{path}: expected one annotation a question, got {len(odd):,} {what}, "
                f"such as question_id {min(odd)}"
            )
    return annotations


def _group(annotation: _Annotation, group: VQAGroup) -> str:
    match group:
        case VQAGroup.answer_type:
            return annotation.answer_type
        case VQAGroup.question_type:
            return annotation.question_type


def write_vqa_submission(
    path: Path, examples: Sequence[Example], answers: Mapping[str, str]
) -> None:
    """``[{"question_id": 1, "answer": "..."}]``, the VQA API's result format, and TextVQA's.

    VQAv2's server wants all questions of ``test2015``, also when only test-dev is scored. Raises
    ``ValueError`` unless there is exactly one answer, by id, for each example.
    """
    rows = [
        {"question_id": int(example.id), "answer": answer}
        for example, answer in pair_answers(examples, answers)
    ]
    write_json(path, rows)
