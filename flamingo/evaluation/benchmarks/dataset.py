"""A benchmark on a data set: queries of one split, demonstrated by items of another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache, cached_property

from flamingo.choices import Metric
from flamingo.evaluation.benchmarks.base import Submission
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.draws import generator
from flamingo.evaluation.metrics.scores import POSITIVE
from flamingo.evaluation.perturbations import ZERO_SHOT_TEXTS, Borrowed
from flamingo.evaluation.planner import MakePlans
from flamingo.evaluation.plans import Plan
from flamingo.evaluation.prompts import Episode, Item
from flamingo.evaluation.tasks import Task
from flamingo.types import Media

logger = logging.getLogger(__name__)


class DatasetBenchmark:
    """Queries drawn from ``test``, demonstrations planned from ``train``.

    Without ``train`` the other examples of ``test`` demonstrate (data sets that have no training
    split). Ids are ``test/<id>`` and ``train/<id>``. ``queries=0`` takes all. Examples without an
    answer are passed over, in the pool always, among the queries unless none has one (a split that
    a server scores); at most ``pool`` of the others are drawn to demonstrate (0: all).
    ``seed`` draws queries and pool, ``seeds`` demonstrations. ``chance`` is the score of a uniform
    guess, by default from the candidates. ``examples`` are those asked, ``offered`` those of the
    pool. Raises ``ValueError`` for more queries than there are, for an example with more than one
    image, and under ROC-AUC for one without two candidates, ``yes`` among them.
    """

    unit = "demonstrations"

    def __init__(
        self,
        *,
        name: str,
        title: str,
        task: Task,
        test: Sequence[Example],
        train: Sequence[Example] | None,
        planner: MakePlans,
        queries: int,
        pool: int,
        seed: int,
        seeds: Sequence[int],
        shots: Sequence[int],
        chance: float | None = None,
        submission: Submission | None = None,
    ) -> None:
        self.name, self.title, self.task = name, title, task
        self.seed, self.seeds, self.shots = seed, seeds, shots
        self.submission = submission
        self.examples = drawn_queries(_annotated(test, name), queries, seed, name)
        if task.metric is Metric.roc_auc:
            _check_orderable(self.examples, name)
        self.chance = _chance(self.examples) if chance is None else chance
        split, offered = ("test", test) if train is None else ("train", train)
        answered = [example for example in offered if example.answers]
        limited = 0 < pool < len(answered)
        self.offered = _drawn(answered, pool, seed, name, "pool") if limited else answered
        self.pool = [_item(split, example, task) for example in self.offered]
        self._queries = [_item("test", example, task) for example in self.examples]
        self._by_id = {item.id: item for item in self.pool}
        self._planner = planner

    def unfit(self, shots: int) -> str | None:
        fewest = min(len(p.demonstrations) for seed in self.seeds for p in self.plans(seed))
        if shots > fewest:
            return f"not every query can be shown more than {fewest} demonstrations"
        return None

    def episodes(self, shots: int, seed: int) -> list[Episode]:
        plans = self.plans(seed)
        return [
            Episode(
                query=item,
                demonstrations=tuple(self._by_id[name] for name in plan.presented(shots)),
                shots=shots,
                candidates=example.candidates,
                group=example.group,
                cluster=example.cluster,
                references=example.answers,
            )
            for item, example, plan in zip(self._queries, self.examples, plans, strict=True)
        ]

    def plans(self, seed: int) -> Sequence[Plan]:
        """The plan of each query, as long as any shot count needs or the pool allows."""
        return self._plans(seed)

    @cache  # noqa: B019 - a benchmark lives as long as its evaluation
    def _plans(self, seed: int) -> Sequence[Plan]:
        longest = max(*self.shots, ZERO_SHOT_TEXTS)
        return self._planner(self.name, seed, self._queries, self.pool, longest)

    @property
    def borrowed(self) -> Borrowed:
        return self._borrowed

    @cached_property
    def _borrowed(self) -> Borrowed:
        media = {item.media: None for item in self.pool if item.media is not None}
        return Borrowed(tuple(media), tuple(item.answer for item in self.pool))


def drawn_queries(
    examples: Sequence[Example], count: int, seed: int, benchmark: str
) -> list[Example]:
    """``count`` of a benchmark's examples, fewer being the first of more; 0: all.

    Raises ``ValueError`` for more than there are.
    """
    if not 0 <= count <= len(examples):
        raise ValueError(
            f"evaluation: queries of {benchmark}: expected 0 (all) to {len(examples)}, got {count}"
        )
    return _drawn(examples, count or len(examples), seed, benchmark, "queries")


def _drawn(
    examples: Sequence[Example], count: int, seed: int, benchmark: str, what: str
) -> list[Example]:
    """The first ``count`` of a permutation."""
    order = generator(seed, benchmark, what).sample(range(len(examples)), len(examples))
    return [examples[place] for place in order[:count]]


def _annotated(examples: Sequence[Example], benchmark: str) -> Sequence[Example]:
    """Those with an answer, if any has one."""
    answered = [example for example in examples if example.answers]
    if not answered or len(answered) == len(examples):
        return examples
    logger.warning(
        "%s: %d of %d queries have no answer and are passed over",
        *(benchmark, len(examples) - len(answered), len(examples)),
    )
    return answered


def _check_orderable(examples: Sequence[Example], benchmark: str) -> None:
    for example in examples:
        if len(example.candidates) != 2 or POSITIVE not in example.candidates:
            raise ValueError(
                f"{benchmark}: metric: roc_auc orders by the probability of {POSITIVE!r} against "
                f"one other candidate, got the candidates {list(example.candidates)} of "
                f"{example.id!r}"
            )


def _item(split: str, example: Example, task: Task) -> Item:
    if len(example.images) != 1:
        raise ValueError(f"example {example.id!r}: expected one image, got {len(example.images)}")
    answer = task.shown(example.answers) if example.answers else ""
    return Item(f"{split}/{example.id}", Media(example.images), example.question, answer)


def _chance(examples: Sequence[Example]) -> float | None:
    """Of a uniform guess among the candidates; None for open questions."""
    if not all(example.candidates for example in examples):
        return None
    return sum(1 / len(example.candidates) for example in examples) / len(examples)
