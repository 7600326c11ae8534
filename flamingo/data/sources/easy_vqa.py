"""easy-VQA questions as training sequences (github.com/vzhou842/easy-VQA, MIT)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from flamingo.config import EasyVQASourceConfig
from flamingo.images import BLANK, open_image
from flamingo.types import END_OF_CHUNK_TOKEN, ImageRef, InterleavedSequence, Media, Text

COLOURS = ("black", "gray", "red", "green", "blue", "yellow", "teal", "brown")
SHAPES = ("circle", "rectangle", "triangle")
ANSWERS = ("yes", "no", *SHAPES, *COLOURS)
_STREAM = 1
"""Sources of one seed draw independently of each other."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image. ``question_id`` is its place in ``questions.json``."""

    question_id: int
    question: str
    answer: str
    image_id: int


def load_questions(folder: Path, split: str) -> list[Question]:
    """The questions of ``split`` (``train`` or ``test``), in the file's order.

    Raises ``ValueError`` naming the file if it is not a list of question, answer, image id.
    """
    path = folder / split / "questions.json"
    try:
        rows = json.loads(path.read_text(encoding="utf8"))
        return [
            Question(index, str(question), str(answer), int(image_id))
            for index, (question, answer, image_id) in enumerate(rows)
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a list of [question, answer, image id]: {error}") from (
            error
        )


def image_ref(folder: Path, split: str, image_id: int) -> ImageRef:
    """easy-VQA's image ``image_id`` of ``split``, keyed ``easy_vqa/<split>/<image id>``."""
    path = folder / split / "images" / f"{image_id}.png"
    return ImageRef(f"easy_vqa/{split}/{image_id}", partial(open_image, path))


def question_text(question: str, answer: str, *, learn_question: bool = False) -> tuple[Text, Text]:
    """What follows ``<image>``: the question, and the answer to be learned with its end."""
    return (
        Text(question, learn=learn_question),
        Text(f" {answer}{END_OF_CHUNK_TOKEN}", learn=True),
    )


class EasyVQASource:
    """Sequences of ``pairs`` different random images, each with random questions about it.

    ``<image>{question} {answer}<|endofchunk|>`` repeated, or with ``questions_per_image`` more
    than one question and answer after each image. The training images alone, of which a share of
    ``blank_rate`` is shown blank.
    """

    name = "easy_vqa"

    def __init__(self, config: EasyVQASourceConfig, seed: int, folder: Path) -> None:
        self.config = config
        self.seed = seed
        questions: dict[int, list[Question]] = defaultdict(list)
        for question in load_questions(folder, "train"):
            questions[question.image_id].append(question)
        if len(questions) < config.pairs:
            raise ValueError(
                f"data.easy_vqa.pairs: expected at most the {len(questions)} images of "
                f"{folder}, got {config.pairs}"
            )
        self._questions = [questions[image_id] for image_id in sorted(questions)]
        self._images = [image_ref(folder, "train", image_id) for image_id in sorted(questions)]

    def images(self) -> Sequence[ImageRef]:
        return [*self._images, BLANK] if self.config.blank_rate > 0 else self._images

    def sequence(self, index: int) -> InterleavedSequence:
        generator = np.random.default_rng((_STREAM, self.seed, index))
        segments: list[Text | Media] = []
        for chosen in generator.choice(len(self._images), self.config.pairs, replace=False):
            blank = self.config.blank_rate > 0 and generator.random() < self.config.blank_rate
            segments.append(Media((BLANK if blank else self._images[chosen],)))
            questions = self._questions[chosen]
            count = min(self.config.questions_per_image, len(questions))
            for position in generator.choice(len(questions), count, replace=False):
                question = questions[position]
                segments += question_text(
                    question.question,
                    question.answer,
                    learn_question=self.config.learn_all_text,
                )
        return InterleavedSequence(tuple(segments))
