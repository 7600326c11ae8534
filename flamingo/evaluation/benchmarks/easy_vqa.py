"""easy-VQA: questions about one coloured shape, 13 answers (github.com/vzhou842/easy-VQA, MIT)."""

from __future__ import annotations

from pathlib import Path

from flamingo.data.sources.easy_vqa import image_ref, load_questions
from flamingo.evaluation.benchmarks.examples import Example


def read_easy_vqa(folder: Path, split: str) -> list[Example]:
    """The questions of ``split`` (``train`` or ``test``), in the file's order.

    An example's id is its place in ``questions.json``; the group is ``shape``, ``colour`` or
    ``yes-no``. Raises ``ValueError`` for a malformed file.
    """
    examples = []
    for place, row in enumerate(load_questions(folder, split)):
        image = image_ref(folder, split, row.image_id)
        examples.append(
            Example(
                id=str(place),
                images=(image,),
                question=row.question,
                answers=(row.answer,),
                group=question_type(row.question),
                cluster=image.key,
            )
        )
    return examples


def question_type(question: str) -> str:
    """``shape``, ``colour`` or ``yes-no``, from the words of the question."""
    if not question.lower().startswith("what"):
        return "yes-no"
    return "colour" if "color" in question.lower() else "shape"
