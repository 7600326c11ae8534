"""TextVQA 0.5.1: questions that need the text in the image, ten answers each.

Singh et al. 2019, "Towards VQA Models That Can Read" (textvqa.org). Images are from Open Images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import (
    Records,
    check_unique,
    image_ref,
    read_json,
)


@dataclass(frozen=True, slots=True)
class _Question:
    question_id: int
    question: str
    image_id: str
    answers: list[str] | None = None


@dataclass(frozen=True, slots=True)
class _File:
    data: Records[_Question]


def read_textvqa(annotations: Path, images: Path) -> list[Example]:
    """The questions of ``TextVQA_0.5.1_{train,val,test}.json`` (test: without answers).

    ``images`` is ``train_images`` (train and val) or ``test_images``. An example's id is its
    ``question_id``; images are keyed ``textvqa/{image_id}``. Raises ``ValueError`` for a malformed
    file.
    """
    examples = []
    for row in read_json(annotations, _File).data:
        image = image_ref(f"textvqa/{row.image_id}", images, f"{row.image_id}.jpg")
        examples.append(
            Example(
                id=str(row.question_id),
                images=(image,),
                question=row.question,
                answers=tuple(row.answers or ()),
                cluster=image.key,
            )
        )
    return check_unique(examples, annotations)
