"""Controls as pure functions on an episode: what is left when one source of information goes.

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

from dataclasses import replace
from enum import Enum

from flamingo.evaluation.demonstrations import generator
from flamingo.evaluation.prompts import Episode
from flamingo.images import BLANK
from flamingo.types import Media


class Condition(Enum):
    """What the model gets to see."""

    real = "real"
    blank_query = "blank_query"
    shuffled_answers = "shuffled_answers"


def perturb(episode: Episode, condition: Condition, seed: int, benchmark: str) -> Episode | None:
    """The episode under ``condition``; None where the condition changes nothing.

    Shuffling needs two demonstrations. A pure function of its arguments.
    """
    match condition:
        case Condition.real:
            return episode
        case Condition.blank_query:
            return blank_query(episode)
        case Condition.shuffled_answers:
            return shuffle_answers(episode, seed, benchmark)


def blank_query(episode: Episode) -> Episode:
    """Every frame of the query's medium replaced by a uniform grey image."""
    blank = Media(tuple(BLANK for _ in episode.query.media.frames))
    return replace(episode, query=replace(episode.query, media=blank))


def shuffle_answers(episode: Episode, seed: int, benchmark: str) -> Episode | None:
    """The demonstrations' answers in a random order; their images and questions stay."""
    if len(episode.demonstrations) < 2:
        return None
    draw = generator(seed, benchmark, episode.query.id, episode.shots, "shuffled_answers")
    answers = [item.answer for item in episode.demonstrations]
    draw.shuffle(answers)
    shuffled = tuple(
        replace(item, answer=answer)
        for item, answer in zip(episode.demonstrations, answers, strict=True)
    )
    return replace(episode, demonstrations=shuffled)
