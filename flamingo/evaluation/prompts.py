"""Prompts: templates as data, and the interleaved sequence of an episode.

Text segments are the same as those of the training sources (``flamingo.data.sources``), and are
tokenised by the same function one by one, so a prompt in evaluation has the ids it had in training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from flamingo.types import (
    END_OF_CHUNK_TOKEN,
    IMAGE_TOKEN,
    InterleavedSequence,
    Media,
    Text,
)


@dataclass(frozen=True, slots=True)
class Template:
    """The text around an image: ``<image>`` + question, then answer.

    ``question`` and ``answer`` are format strings over the fields ``question`` and ``answer``. The
    space before an answer belongs to the answer: that is how it is learned. ``separator`` follows
    every demonstration. Question and answer are tokenised apart, as in training, or, if ``whole``,
    as one text between special tokens, as the harnesses do that join a prompt first.

    Raises ``ValueError`` for a format string that lacks its field or has another.
    """

    question: str
    answer: str
    separator: str = ""
    whole: bool = False

    def __post_init__(self) -> None:
        for name, text, fields in (
            ("question", self.question, {"question"}),
            ("answer", self.answer, {"answer"}),
        ):
            found = {field for _, field, _, _ in Formatter().parse(text) if field is not None}
            if found - fields or (name == "answer" and not found):
                raise ValueError(f"template.{name}: expected a text with {{{name}}}, got {text!r}")

    def question_text(self, question: str) -> str:
        return self.question.format(question=question)

    def answer_text(self, answer: str) -> str:
        """The answer as it follows the question, with its leading space, without end of chunk."""
        return self.answer.format(answer=answer)


QUESTION = Template(question="{question}", answer=" {answer}")
"""easy-VQA, and any question and answer side by side."""
BINDING = Template(question="This is a", answer=" {answer}")


@dataclass(frozen=True, slots=True)
class Item:
    """An image with a question and its answer: a demonstration, or the query.

    ``media`` is None where text alone is shown: no image and no ``<image>`` token.
    """

    id: str
    media: Media | None
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Episode:
    """One query in its context: everything that a prediction depends on but the model.

    ``shots`` counts as the benchmark does (demonstrations, or demonstrations a class).
    ``candidates`` are the answers to rank; empty for an open-ended question. ``group`` is the kind
    of query results are broken down by ("" for none). ``cluster`` names the query's image before
    any perturbation: standard errors are clustered by it. ``references`` are all right answers to
    the query, of which its item has the one that a demonstration would show; none where the
    annotation is missing.
    """

    query: Item
    demonstrations: tuple[Item, ...]
    shots: int
    candidates: tuple[str, ...] = ()
    group: str = ""
    cluster: str = ""
    references: tuple[str, ...] = ()


def prompt(episode: Episode, template: Template) -> InterleavedSequence:
    """Demonstrations with their answers, then the query without."""
    segments: list[Text | Media] = []
    for item in episode.demonstrations:
        segments += _asked(item, template)
        answer = template.answer_text(item.answer)
        segments.append(Text(f"{answer}{END_OF_CHUNK_TOKEN}{template.separator}"))
    segments += _asked(episode.query, template)
    return InterleavedSequence(tuple(joined(segments) if template.whole else segments))


def _asked(item: Item, template: Template) -> list[Text | Media]:
    question = Text(template.question_text(item.question))
    return [question] if item.media is None else [item.media, question]


def joined(segments: list[Text | Media]) -> list[Text | Media]:
    """Neighbouring texts as one, for a template that is tokenised as a ``whole``."""
    merged: list[Text | Media] = []
    for segment in segments:
        last = merged[-1] if merged else None
        if isinstance(segment, Text) and isinstance(last, Text):
            merged[-1] = Text(last.text + segment.text)
        else:
            merged.append(segment)
    return merged


def prompt_text(sequence: InterleavedSequence) -> str:
    """The prompt as one reads it, with ``<image>`` for each medium."""
    return "".join(
        IMAGE_TOKEN if isinstance(segment, Media) else segment.text for segment in sequence.segments
    )


def prompt_hash(sequence: InterleavedSequence, candidates: tuple[str, ...]) -> str:
    """16 hex digits of the text, the keys of the images and the candidates."""
    return hash_of(prompt_text(sequence), sequence.media, candidates)


def hash_of(text: str, media: Sequence[Media], candidates: Sequence[str]) -> str:
    """:func:`prompt_hash` of a prompt's text (as :func:`prompt_text` gives it) and its media."""
    keys = [[frame.key for frame in medium.frames] for medium in media]
    content = json.dumps([text, keys, list(candidates)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
