"""Other words in an episode's demonstrations: their answers, their questions, their order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from flamingo.evaluation.draws import generator
from flamingo.evaluation.prompts import Episode, Item

OPPOSITE = {"yes": "no", "no": "yes", "Yes": "No", "No": "Yes", "YES": "NO", "NO": "YES"}


def shuffle_answers(episode: Episode, seed: int, benchmark: str) -> Episode | None:
    """The demonstrations' answers in a random order; their images and questions stay.

    None for fewer than two demonstrations.
    """
    if len(episode.demonstrations) < 2:
        return None
    draw = generator(seed, benchmark, episode.query.id, episode.shots, "shuffled_answers")
    answers = [item.answer for item in episode.demonstrations]
    draw.shuffle(answers)
    return _with_answers(episode, answers)


def flip_answers(episode: Episode, labels: Sequence[str] = ()) -> Episode | None:
    """Every demonstration with a different answer, the same one wherever it stands.

    Yes becomes no and the reverse; any other answer becomes the next of the episode's candidates
    (after the last comes the first), or, in an episode without candidates, the next of ``labels``,
    which must be in ascending order without repetition. Unlike shuffled answers, flipped ones are
    always wrong. None without demonstrations; ``ValueError`` if there is no other label.
    """
    if not episode.demonstrations:
        return None
    return _with_answers(
        episode, [_flipped(item, episode.candidates, labels) for item in episode.demonstrations]
    )


def _flipped(item: Item, candidates: Sequence[str], labels: Sequence[str]) -> str:
    if item.answer in OPPOSITE:
        return OPPOSITE[item.answer]
    if item.answer in candidates:
        following = candidates[(candidates.index(item.answer) + 1) % len(candidates)]
    elif labels:
        following = labels[bisect_right(labels, item.answer) % len(labels)]
    else:
        following = item.answer
    if following == item.answer:
        raise ValueError(
            f"labels: expected an answer other than {item.answer!r} for demonstration {item.id!r}, "
            f"got {len(candidates)} candidates and {len(labels)} labels without one"
        )
    return following


def _with_answers(episode: Episode, answers: Sequence[str]) -> Episode:
    changed = tuple(
        replace(item, answer=answer)
        for item, answer in zip(episode.demonstrations, answers, strict=True)
    )
    return replace(episode, demonstrations=changed)


def swap_questions(episode: Episode, seed: int, benchmark: str) -> Episode | None:
    """Every demonstration asks the question of another one; images and answers stay.

    Uniform over the cyclic permutations (Sattolo 1986), which leave nothing in its place. None for
    fewer than two demonstrations.
    """
    questions = [item.question for item in episode.demonstrations]
    if len(questions) < 2:
        return None
    draw = generator(seed, benchmark, episode.query.id, episode.shots, "swap_questions")
    for last in range(len(questions) - 1, 0, -1):
        other = draw.randrange(last)
        questions[last], questions[other] = questions[other], questions[last]
    changed = tuple(
        replace(item, question=question)
        for item, question in zip(episode.demonstrations, questions, strict=True)
    )
    return replace(episode, demonstrations=changed)


def reverse_order(episode: Episode) -> Episode | None:
    """The demonstrations in reverse order: the first stands next to the query.

    None for fewer than two demonstrations.
    """
    if len(episode.demonstrations) < 2:
        return None
    return replace(episode, demonstrations=episode.demonstrations[::-1])
