"""Controls as pure functions on an episode: what is left when one source of information goes.

What each does to an episode stands with its function in ``image_perturbations`` and
``text_perturbations``; this file names them and says what two of them leave by construction.

``blank_query``: the query's image becomes a uniform grey. In binding every concept of an episode is
equally likely to be asked for, whatever the context, so accuracy is exactly chance in expectation.
In visual question answering what remains is the language prior.

``shuffled_answers``: the answers of the demonstrations are permuted among them, uniformly over all
permutations, the identity included. In binding each class has as many demonstrations as any other,
and words were given to classes at random. The shuffled answers are then uniform over all
arrangements whatever the true assignment was; given the whole prompt, each word is equally likely
to be the right one, so every predictor has an expected accuracy of exactly ``1 / ways``. A
derangement would not do: with one shot a class it would show a wrong word for certain, and a model
that reads its context would score 0 instead of chance. In visual question answering the query can
still be answered from its own image: the control shows how much comes from the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from flamingo.choices import Condition
from flamingo.evaluation.image_perturbations import (
    blank_demonstrations,
    blank_query,
    blur_demonstrations,
    blur_query,
    drop_demonstrations,
    drop_query,
    swap_demonstrations,
    swap_query,
    text_only_zero_shot,
)
from flamingo.evaluation.prompts import Episode
from flamingo.evaluation.text_perturbations import (
    flip_answers,
    reverse_order,
    shuffle_answers,
    swap_questions,
)
from flamingo.images import BLANK
from flamingo.types import Media

__all__ = [
    "BLANK",
    "ZERO_SHOT_TEXTS",
    "Borrowed",
    "blank_query",
    "perturb",
    "shuffle_answers",
]

ZERO_SHOT_TEXTS = 2
"""Demonstrations of the text-only "0-shot"."""


@dataclass(frozen=True)
class Borrowed:
    """What some conditions take from outside of an episode.

    ``media``: what images are swapped with. ``answers``: what an answer can be flipped to where the
    episode has no candidates. Both belong to the benchmark (all of its pool): a part that depends
    on a limit on queries would make the perturbed episodes depend on it.
    """

    media: Sequence[Media] = ()
    answers: Sequence[str] = ()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The different answers in ascending order."""
        return tuple(sorted(set(self.answers)))


NOTHING = Borrowed()


def perturb(
    episode: Episode,
    condition: Condition,
    seed: int,
    benchmark: str,
    borrowed: Borrowed = NOTHING,
) -> Episode | None:
    """The episode under ``condition``; None where it has nothing that could be changed.

    (No images, no demonstrations, or a single one where the condition needs two.) A pure function
    of its arguments. Raises ``ValueError`` where ``borrowed`` lacks what the condition needs.
    """
    match condition:
        case Condition.real:
            return episode
        case Condition.blank_query:
            return blank_query(episode)
        case Condition.shuffled_answers:
            return shuffle_answers(episode, seed, benchmark)
        case Condition.blank_demonstrations:
            return blank_demonstrations(episode)
        case Condition.swap_query:
            return swap_query(episode, borrowed.media, seed, benchmark)
        case Condition.swap_demonstrations:
            return swap_demonstrations(episode, borrowed.media, seed, benchmark)
        case Condition.drop_query:
            return drop_query(episode)
        case Condition.drop_demonstrations:
            return drop_demonstrations(episode)
        case Condition.blur_query:
            return blur_query(episode)
        case Condition.blur_demonstrations:
            return blur_demonstrations(episode)
        case Condition.flipped_answers:
            return flip_answers(episode, borrowed.labels)
        case Condition.swapped_questions:
            return swap_questions(episode, seed, benchmark)
        case Condition.reversed_order:
            return reverse_order(episode)
        case Condition.text_only_zero_shot:
            return text_only_zero_shot(episode)
