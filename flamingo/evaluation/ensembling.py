"""One query asked in several ways: other orders of the demonstrations, other templates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from flamingo.evaluation.draws import generator
from flamingo.evaluation.prompts import Episode, Item, Template
from flamingo.evaluation.scoring import Answer


@dataclass(frozen=True, slots=True)
class Ensemble:
    """How many orders of the demonstrations, and which templates besides the benchmark's own.

    Every order is asked with every template. Raises ``ValueError`` for less than one order, and
    for a template that is named twice.
    """

    permutations: int = 1
    """Orders of the demonstrations, the given one included; fewer where there are not so many."""
    templates: tuple[Template, ...] = ()
    """Besides the benchmark's own, which is always asked."""

    @property
    def description(self) -> str:
        """One line for the keys of predictions; "" where a query is asked in one way."""
        parts = [f"{self.permutations} orders"] if self.permutations > 1 else []
        return ", ".join([*parts, *(f"also as {template}" for template in self.templates)])

    def __post_init__(self) -> None:
        if self.permutations < 1:
            raise ValueError(f"ensemble.permutations: expected at least 1, got {self.permutations}")
        if len(set(self.templates)) < len(self.templates):
            raise ValueError(f"ensemble.templates: expected different ones, got {self.templates}")


ONE_WAY = Ensemble()
"""Every query is asked once."""


def variants(
    episode: Episode, template: Template, ensemble: Ensemble, seed: int, benchmark: str
) -> list[tuple[Episode, Template]]:
    """The ways in which a query is asked; the first is ``episode`` with its own ``template``.

    A pure function of its arguments, whatever other queries there are; more permutations begin
    with the fewer. Orders that show the same (repeated demonstrations) count once.
    """
    orders = _orders(episode, ensemble.permutations, seed, benchmark)
    episodes = [replace(episode, demonstrations=order) for order in orders]
    templates = [template, *(other for other in ensemble.templates if other != template)]
    return [(own, asked) for asked in templates for own in episodes]


def _orders(
    episode: Episode, permutations: int, seed: int, benchmark: str
) -> list[tuple[Item, ...]]:
    given = episode.demonstrations
    repeated = math.prod(math.factorial(n) for n in Counter(given).values())
    wanted = min(permutations, math.factorial(len(given)) // repeated)
    draw = generator(seed, benchmark, episode.query.id, "permutation")
    orders = {given: None}  # a set that keeps its order
    while len(orders) < wanted:
        order = list(given)
        draw.shuffle(order)
        orders[tuple(order)] = None
    return list(orders)


def combine(answers: Sequence[Answer], candidates: Sequence[str]) -> Answer:
    """One answer from those to the variants of a query.

    Closed questions (with ``candidates``, as they follow the prompt of the first variant): the mean
    over the variants of each candidate's log-probability, normalised to sum to one: a product of
    experts, or logarithmic opinion pool (Hinton 2002; Genest and Zidek 1986). One variant that is
    sure against a candidate vetoes it. ``scores`` are the log-probabilities of the pool.

    Open questions: the text with the largest probability summed over the variants that gave it
    (ties: that of the earliest); its probability is the mean over all variants, 0 where another
    text was given: a mixture of experts, or linear opinion pool, over the answers that were found
    (Stone 1961). ``raw`` is the earliest variant's that gave it.

    Raises ``ValueError`` without answers, or if one has not a score for each candidate.
    """
    if not answers:
        raise ValueError("answers: expected at least one, got none")
    for number, answer in enumerate(answers):
        if len(answer.scores) != len(candidates):
            raise ValueError(
                f"answers: expected {len(candidates)} scores, one for each candidate, in variant "
                f"{number}, got {len(answer.scores)}"
            )
    return _product(answers, candidates) if candidates else _mixture(answers)


def _product(answers: Sequence[Answer], candidates: Sequence[str]) -> Answer:
    scores = torch.tensor([answer.scores for answer in answers], dtype=torch.float64)
    pool = scores.log_softmax(dim=1).mean(dim=0).log_softmax(dim=0)
    chosen = int((pool == pool.max()).int().argmax())
    text = candidates[chosen]
    return Answer(text, text.strip(), pool[chosen].exp().item(), tuple(pool.tolist()))


def _mixture(answers: Sequence[Answer]) -> Answer:
    given: dict[str, list[Answer]] = {}
    for answer in answers:
        given.setdefault(answer.text, []).append(answer)
    sums = {text: math.fsum(a.probability for a in own) for text, own in given.items()}
    best = max(sums, key=lambda text: sums[text])
    return Answer(given[best][0].raw, best, sums[best] / len(answers))
