"""Sets of visual questions as few-shot sequences: VQAv2, OK-VQA, TextVQA, VizWiz, GQA.

Their files are read by the benchmarks' readers (``flamingo.evaluation.benchmarks``), which this
room may not import: who builds the source hands the questions over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from flamingo.choices import AnswerChoice
from flamingo.data.documents import Dropped, Record
from flamingo.data.interleaving import unfit
from flamingo.data.tables import TableShards, check_held_out
from flamingo.source_config import VQASourceConfig
from flamingo.types import END_OF_CHUNK_TOKEN, ImageRef, InterleavedSequence, Media, Text

_PLACE = "place"


@runtime_checkable
class Asked(Protocol):
    """A question with its image and its annotators' answers (``Example`` of the benchmarks)."""

    @property
    def images(self) -> tuple[ImageRef, ...]: ...
    @property
    def question(self) -> str: ...
    @property
    def answers(self) -> tuple[str, ...]: ...


def vqa_shards(config: VQASourceConfig, questions: Sequence[Asked]) -> TableShards:
    """A record for each of ``questions``: its place in them."""
    return TableShards(config.questions, [{_PLACE: place} for place in range(len(questions))])


def split_questions(
    config: VQASourceConfig, questions: Sequence[Asked]
) -> tuple[list[Asked], list[Asked]]:
    """Those to train on, and those on the last ``config.held_out`` images (in the order in which
    the questions name them first). Raises ``ValueError`` if all images are held out."""
    images = list(dict.fromkeys(image.key for asked in questions for image in asked.images))
    seen = set(images[: check_held_out(config.held_out, len(images), config.questions)])
    return (
        [asked for asked in questions if all(image.key in seen for image in asked.images)],
        [asked for asked in questions if not any(image.key in seen for image in asked.images)],
    )


class VQAParser:
    """``<image>{prompt} {answer}<|endofchunk|>`` for ``pairs`` questions of different images.

    The record's question comes last; the others are drawn, from all, as its demonstrations. In an
    epoch each question therefore comes last once, and ``pairs - 1`` times on average before.

    Raises ``ValueError`` for a question without an answer or with other than one image, and for
    fewer images than ``pairs``.
    """

    def __init__(self, config: VQASourceConfig, questions: Sequence[Asked]) -> None:
        self.config = config
        self._questions = questions
        for question in questions:
            if len(question.images) != 1 or not question.answers:
                raise ValueError(
                    f"{config.questions}: expected questions of one image, with answers, got "
                    f"{question.question!r} with {len(question.images)} images and "
                    f"{len(question.answers)} answers"
                )
        images = len({question.images[0].key for question in questions})
        if images < config.pairs:
            raise ValueError(
                f"pairs: expected at most the {images} images of {config.questions}, "
                f"got {config.pairs}"
            )

    def __call__(
        self, record: Record, generator: np.random.Generator
    ) -> InterleavedSequence | Dropped:
        segments: list[Text | Media] = []
        for question in self._drawn(record[_PLACE], generator):
            answer = self._answer(question, generator)
            refused = unfit((question.question, answer))
            if refused is not None:
                return refused
            prompt = self.config.prompt.format(question=question.question)
            segments += [
                Media(question.images),
                Text(prompt),
                Text(f" {answer}{END_OF_CHUNK_TOKEN}", learn=True),
            ]
        return InterleavedSequence(tuple(segments))

    def _drawn(self, place: int, generator: np.random.Generator) -> list[Asked]:
        """Demonstrations, then the question itself."""
        chosen = [self._questions[place]]
        images = {chosen[0].images[0].key}
        while len(chosen) < self.config.pairs:
            other = self._questions[int(generator.integers(len(self._questions)))]
            if other.images[0].key not in images:
                images.add(other.images[0].key)
                chosen.insert(0, other)
        return chosen

    def _answer(self, question: Asked, generator: np.random.Generator) -> str:
        match self.config.answer:
            case AnswerChoice.most_common:
                return Counter(question.answers).most_common(1)[0][0]
            case AnswerChoice.random:
                return question.answers[int(generator.integers(len(question.answers)))]
