"""GQA: compositional questions made from scene graphs, one answer each (exact match).

Hudson & Manning 2019, "GQA: A New Dataset for Real-World Visual Reasoning" (cs.stanford.edu/gqa).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flamingo.choices import GQAGroup
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import (
    check_unique,
    image_ref,
    pair_answers,
    read_json_table,
    write_json,
)


@dataclass(frozen=True, slots=True)
class _Types:
    structural: str
    semantic: str
    detailed: str


@dataclass(frozen=True, slots=True)
class _Question:
    imageId: str
    question: str
    answer: str | None = None
    types: _Types | None = None


def read_gqa(
    questions: Path, images: Path, *, group: GQAGroup = GQAGroup.structural
) -> list[Example]:
    """The questions of a file (``val_balanced_questions.json``) or of all files of a folder.

    A folder is how ``train_all_questions`` comes, in ten parts. The test and submission files have
    neither answers nor types. An example's id is its question's; images are keyed
    ``gqa/{imageId}``. Raises ``ValueError`` for a malformed file.
    """
    files = sorted(questions.glob("*.json")) if questions.is_dir() else [questions]
    if not files:
        raise ValueError(f"{questions}: expected files ending in .json, found none")
    rows = [row for file in files for row in read_json_table(file, _Question).items()]
    refs = {
        image_id: image_ref(f"gqa/{image_id}", images, f"{image_id}.jpg")
        for image_id in {row.imageId for _, row in rows}
    }
    examples = [
        Example(
            id=question_id,
            images=(refs[row.imageId],),
            question=row.question,
            answers=() if row.answer is None else (row.answer,),
            group="" if row.types is None else _group(row.types, group),
            cluster=refs[row.imageId].key,
        )
        for question_id, row in rows
    ]
    return check_unique(examples, questions)


def _group(types: _Types, group: GQAGroup) -> str:
    match group:
        case GQAGroup.structural:
            return types.structural
        case GQAGroup.semantic:
            return types.semantic
        case GQAGroup.detailed:
            return types.detailed


def write_gqa_submission(
    path: Path, examples: Sequence[Example], answers: Mapping[str, str]
) -> None:
    """``[{"questionId": "1", "prediction": "..."}]``, as the server and the official script read.

    Raises ``ValueError`` unless there is exactly one answer, by id, for each example.
    """
    rows = [
        {"questionId": example.id, "prediction": answer}
        for example, answer in pair_answers(examples, answers)
    ]
    write_json(path, rows)
