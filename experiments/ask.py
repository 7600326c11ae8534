"""Ask a trained run about an image, with any number of demonstrations before the question.

    python experiments/ask.py run=runs/quickstart/seed=0 \\
        image=query.png question="what shape is in the image?" \\
        demos='["a.png | what color is the circle? | red", "b.png | is there a circle? | no"]'

Prints the answer and its probability, decoded as the run's evaluation decodes answers to questions
about images: greedily, unless its evaluation.protocol or evaluation.beams say otherwise. With
candidates='[dax, wug]' the candidates are ranked instead, by the likelihood of the whole word. To
bind words, ask as in training: question="This is a" demos='["a.png | This is a | dax", ...]'. A
demonstration is "image | question | answer"; the last one stands next to the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from omegaconf import MISSING

from flamingo.asking import candidate_probabilities, open_answer, open_respondent, read
from flamingo.command_line import entry_point
from flamingo.evaluation.prompts import Episode, Item
from flamingo.images import open_image
from flamingo.runs import Run, load_run
from flamingo.types import ImageRef, Media


@dataclass(kw_only=True)
class AskConfig:
    """What is asked, and which run answers."""

    run: str = MISSING
    """The run's directory."""
    image: str = MISSING
    """Path of the image that is asked about."""
    question: str = "This is a"
    demos: list[str] = field(default_factory=list)
    """Demonstrations, each "image | question | answer"."""
    candidates: list[str] = field(default_factory=list)
    """Answers to choose from; none: the answer is open."""
    step: int | None = None
    """Of the checkpoint; default: the newest."""
    max_new_tokens: int | None = None
    """Of an open answer; default: as in the run's evaluation (10, unless it says otherwise)."""

    def __post_init__(self) -> None:
        words = [word.strip() for word in self.candidates]
        if len(set(words)) < len(words) or not all(words):
            raise ValueError(
                f"candidates: expected different, non-empty ones, got {list(self.candidates)}"
            )
        if not self.question.strip():
            raise ValueError(f"question: expected text, got {self.question!r}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected >= 1, got {self.max_new_tokens}")


def main(config: AskConfig) -> None:
    """Answer. Raises ``ValueError`` or ``OSError`` for what cannot be asked."""
    asked = episode(config)
    print(ask(load_run(config.run), asked, config.step, config.max_new_tokens))


def episode(config: AskConfig) -> Episode:
    """The demonstrations and the question; every image is opened, so that a bad one is named."""
    demonstrations = [demonstration(text, number) for number, text in enumerate(config.demos, 1)]
    query = Item(config.image, media(config.image), config.question.strip(), "")
    return Episode(
        query,
        tuple(demonstrations),
        len(demonstrations),
        candidates=tuple(map(str.strip, config.candidates)),
    )


def demonstration(text: str, number: int) -> Item:
    """``image | question | answer`` as an item. Raises ``ValueError`` for any other form."""
    parts = [part.strip() for part in text.split("|")]
    if len(parts) != 3 or not all(parts):
        raise ValueError(
            f'demos: expected "image | question | answer" as demonstration {number}, got {text!r}'
        )
    path, question, answer = parts
    return Item(path, media(path), question, answer)


def media(path: str) -> Media:
    """The image at ``path``, opened once to know that it is one."""
    open_image(path)
    return Media((ImageRef(path, partial(open_image, path)),))


def ask(run: Run, asked: Episode, step: int | None, max_new_tokens: int | None) -> str:
    """The answer with its probability, or the candidates with theirs, likeliest first."""
    respondent = open_respondent(run, step, max_new_tokens=max_new_tokens)
    tokens = read(respondent, asked)
    if asked.candidates:
        probabilities = candidate_probabilities(respondent, tokens, asked.candidates)
        return ranking(asked.candidates, probabilities)
    answer = open_answer(respondent, tokens)
    return f"{answer.text or '(nothing)'}  (probability {answer.probability:.3g})"


def ranking(candidates: Sequence[str], probabilities: Sequence[float]) -> str:
    """A line a candidate, likeliest first."""
    width = max(map(len, candidates))
    ranked = sorted(zip(probabilities, candidates, strict=True), key=lambda pair: -pair[0])
    return "\n".join(f"{word:<{width}}  {probability:.3f}" for probability, word in ranked)


if __name__ == "__main__":
    entry_point(main, AskConfig, "ask", verbatim=["run", "image", "question"])
