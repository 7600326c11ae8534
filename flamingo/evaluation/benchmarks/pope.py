"""POPE: is an object in the image, asked of objects that are and of likely ones that are not.

Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models"
(github.com/RUCAIBox/POPE). F1 and the ratio of yes. There is neither a training split nor a test
server: all labels are public.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from flamingo.choices import POPESetting
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_unique, image_ref, read_json_lines

ANSWERS = ("no", "yes")


@dataclass(frozen=True, slots=True)
class _Question:
    question_id: int
    image: str
    text: str
    label: Literal["yes", "no"] | None = None


def read_pope(questions: Path, images: Path, setting: POPESetting) -> list[Example]:
    """The questions of ``coco_pope_{setting}.json`` (JSON lines, whatever its name says).

    Numbers start anew in each of the three files, so an example's id is ``{setting}/{number}``, and
    the files of all settings can be put together. The group is the setting; images are keyed
    ``pope/COCO_val2014_000000310196``. ``images`` is the folder of ``val2014``. Raises
    ``ValueError`` for a malformed file.
    """
    examples = []
    for row in read_json_lines(questions, _Question):
        image = image_ref(f"pope/{PurePosixPath(row.image).stem}", images, row.image)
        examples.append(
            Example(
                id=f"{setting.value}/{row.question_id}",
                images=(image,),
                question=row.text,
                answers=() if row.label is None else (row.label,),
                candidates=ANSWERS,
                group=setting.value,
                cluster=image.key,
            )
        )
    return check_unique(examples, questions)
