"""VL-ICL's fast binding: which of two made-up names has this image, when only the context tells.

Zong et al. 2025 ("Open-Ended MiniImageNet"). Every query brings the images of five classes; an
episode shows its own class and one other, drawn at random, and these two are the candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from flamingo.evaluation.benchmarks.binding import demonstrated
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.demonstrations import generator, plan_balanced
from flamingo.evaluation.perturbations import ZERO_SHOT_TEXTS, Borrowed
from flamingo.evaluation.planner import stored_plans
from flamingo.evaluation.plans import Plan
from flamingo.evaluation.prompts import Episode, Item
from flamingo.evaluation.tasks import Task
from flamingo.types import Media


@dataclass(frozen=True, eq=False)
class OpenMIBenchmark:
    """``queries``, each demonstrated by those of ``support`` that its ``pools`` name, by class.

    ``n`` shots are ``2 n`` demonstrations. What shows the query's own image is never shown.
    ``stored`` is a folder of plans to use instead of drawing. Raises ``ValueError`` for a query of
    a single class.
    """

    name: str
    title: str
    task: Task
    queries: Sequence[Example]
    support: Mapping[str, Example]
    pools: Mapping[str, Sequence[Sequence[str]]]
    seed: int
    seeds: Sequence[int]
    shots: Sequence[int]
    stored: Path | None = None
    unit: str = "demonstrations a class"
    chance: float = 0.5
    submission: None = None

    def __post_init__(self) -> None:
        for query in self.queries:
            if len(query.candidates) < 2:
                raise ValueError(
                    f"{self.name}, {query.id}: expected two classes or more, "
                    f"got {list(query.candidates)}"
                )

    def unfit(self, shots: int) -> str | None:
        fewest = min(len(p.demonstrations) for seed in self.seeds for p in self.plans(seed)) // 2
        if shots > fewest:
            return f"not every query has more than {fewest} demonstrations of both classes"
        return None

    def episodes(self, shots: int, seed: int) -> list[Episode]:
        return [
            self._episode(query, plan, shots)
            for query, plan in zip(self.queries, self.plans(seed), strict=True)
        ]

    def plans(self, seed: int) -> list[Plan]:
        """In rounds over both classes, as long as any shot count needs or the images allow."""
        return self._plans(seed)

    @cache  # noqa: B019 - a benchmark lives as long as its evaluation
    def _plans(self, seed: int) -> list[Plan]:
        if self.stored is not None:
            ids = [f"test/{query.id}" for query in self.queries]
            return stored_plans(self.stored, self.name, seed, ids, _named(self.support))
        return [self._plan(query, seed) for query in self.queries]

    def _plan(self, query: Example, seed: int) -> Plan:
        pools = [[f"train/{shown.id}" for shown in own] for own in self._shown(query).values()]
        rounds = min(*map(len, pools), max(*self.shots, ZERO_SHOT_TEXTS))
        return plan_balanced(seed, self.name, f"test/{query.id}", pools, rounds)

    def _shown(self, query: Example) -> dict[str, list[Example]]:
        """What the query's class and another one offer, by class in the order of the file."""
        draw = generator(self.seed, self.name, query.id, "episode")
        own = query.answers[0]
        other = draw.choice([label for label in query.candidates if label != own])
        return {
            label: [self.support[i] for i in ids if self.support[i].images != query.images]
            for label, ids in zip(query.candidates, self.pools[query.id], strict=True)
            if label in (own, other)
        }

    def _episode(self, query: Example, plan: Plan, shots: int) -> Episode:
        shown = self._shown(query)
        items = [_item("train", example) for own in shown.values() for example in own]
        return Episode(
            query=_item("test", query),
            demonstrations=tuple(demonstrated(plan, 2 * shots, {item.id: item for item in items})),
            shots=shots,
            candidates=tuple(sorted(shown)),
            cluster=query.cluster,
            references=query.answers,
        )

    @property
    def borrowed(self) -> Borrowed:
        return self._borrowed

    @cached_property
    def _borrowed(self) -> Borrowed:
        return Borrowed(tuple(dict.fromkeys(Media(e.images) for e in self.support.values())))

    def prior(self) -> None:
        return None


def _named(support: Mapping[str, Example]) -> set[str]:
    return {f"train/{name}" for name in support}


def _item(split: str, example: Example) -> Item:
    media = Media(example.images)
    return Item(f"{split}/{example.id}", media, example.question, example.answers[0])
