"""A benchmark on a data set: queries of one split, demonstrated by items of another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property

from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.draws import generator
from flamingo.evaluation.perturbations import ZERO_SHOT_TEXTS, Borrowed
from flamingo.evaluation.planner import Planner
from flamingo.evaluation.plans import Plan
from flamingo.evaluation.prompts import Episode, Item
from flamingo.evaluation.tasks import Task
from flamingo.types import Media


class DatasetBenchmark:
    """Queries drawn from ``test``, demonstrations planned from ``train``.

    Without ``train`` the other examples of ``test`` demonstrate (data sets that have no training
    split). Ids are ``test/<id>`` and ``train/<id>``. ``queries=0`` takes all. Examples of the pool
    without an answer are passed over. ``seed`` draws queries and pool, ``seeds`` demonstrations.
    ``chance`` is the score of a uniform guess, by default from
    the candidates. Raises ``ValueError`` for more queries than there are, and for an example with
    more than one image.
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
        planner: Planner,
        queries: int,
        pool: int,
        seed: int,
        seeds: Sequence[int],
        shots: Sequence[int],
        chance: float | None = None,
    ) -> None:
        self.name, self.title, self.task = name, title, task
        self.seed, self.seeds, self.shots = seed, seeds, shots
        self.examples = _drawn(test, queries, f"evaluation.{name}.queries", seed, name, "queries")
        self.chance = _chance(self.examples) if chance is None else chance
        split, offered = ("test", test) if train is None else ("train", train)
        answered = [example for example in offered if example.answers]
        answered = _drawn(answered, pool, "evaluation.demonstrations.pool", seed, name, "pool")
        self.pool = [_item(split, example, task) for example in answered]
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

    @cache  # noqa: B019 - a benchmark lives as long as its evaluation
    def plans(self, seed: int) -> Sequence[Plan]:
        """The plan of each query, as long as any shot count needs or the pool allows."""
        longest = max(*self.shots, ZERO_SHOT_TEXTS)
        return self._planner(self.name, seed, self._queries, self.pool, longest)

    @cached_property
    def borrowed(self) -> Borrowed:
        media = {item.media: None for item in self.pool if item.media is not None}
        return Borrowed(tuple(media), tuple(item.answer for item in self.pool))


def _drawn(
    examples: Sequence[Example], count: int, name: str, seed: int, benchmark: str, what: str
) -> list[Example]:
    """``count`` of the examples; 0: all. A permutation cut short: fewer are the first of more."""
    if not 0 <= count <= len(examples):
        raise ValueError(f"{name}: expected 0 (all) to {len(examples)}, got {count}")
    if not count and what == "pool":
        return list(examples)
    order = generator(seed, benchmark, what).sample(range(len(examples)), len(examples))
    return [examples[place] for place in order[: count or len(examples)]]


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
