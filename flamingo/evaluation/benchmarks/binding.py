"""Concept binding: which made-up word names this image, when only the context tells.

An episode draws ``ways`` concepts and as many held-out words, gives the words to the concepts at
random, shows ``k`` images of each concept with its word, and asks for the word of a new image. The
episode's words are the candidates. Every query asks for each concept with equal probability
whatever the order of its context, so that blind answers and position rules are right in
``1 / ways`` of the cases in expectation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from flamingo.choices import Metric
from flamingo.data.concepts import Concept
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.demonstrations import generator, plan_balanced
from flamingo.evaluation.perturbations import ZERO_SHOT_TEXTS, Borrowed
from flamingo.evaluation.planner import stored_plans
from flamingo.evaluation.plans import Plan
from flamingo.evaluation.prompts import BINDING, Episode, Item
from flamingo.evaluation.tasks import Task, first
from flamingo.types import ImageRef, Media

BINDING_TASK = Task(
    template=BINDING,
    decoding=Decoding(),
    metric=Metric.exact_match,
    shown=first,
)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What a query's episode is made of: the concept asked for, and what each class offers."""

    target: int
    asked: ImageRef
    words: Sequence[str]
    views: Sequence[Sequence[ImageRef]]


@dataclass(frozen=True, eq=False)
class BindingBenchmark:
    """``queries`` episodes over ``concepts``; images are never repeated within an episode.

    ``k`` shots a class need ``k + 1`` images of every concept. An item's id is its image's key,
    a query's its number. ``stored`` is a folder of plans to use instead of drawing. Raises
    ``ValueError`` for more ways than concepts or words.
    """

    name: str
    title: str
    concepts: Sequence[Concept]
    words: Sequence[str]
    ways: int
    queries: int
    seed: int
    seeds: Sequence[int]
    shots: Sequence[int]
    unit: str = "demonstrations a class"
    task: Task = BINDING_TASK
    stored: Path | None = None
    submission: None = None

    def __post_init__(self) -> None:
        for kind, available in (("concepts", self.concepts), ("words", self.words)):
            if len(available) < self.ways:
                raise ValueError(
                    f"ways: expected at most the {len(available)} {kind} of {self.name}, "
                    f"got {self.ways}"
                )

    @property
    def chance(self) -> float:
        return 1 / self.ways

    def unfit(self, shots: int) -> str | None:
        smallest = min(self.concepts, key=lambda concept: len(concept.views))
        if shots + 1 > len(smallest.views):
            return (
                f"{shots} demonstrations a class and a query need {shots + 1} images of each, "
                f"and {smallest.name!r} has {len(smallest.views)}"
            )
        return None

    def episodes(self, shots: int, seed: int) -> list[Episode]:
        return [self._episode(plan, shots) for plan in self.plans(seed)]

    def plans(self, seed: int) -> list[Plan]:
        """In rounds over the classes, as long as any shot count needs or the images allow."""
        return self._plans(seed)

    @cache  # noqa: B019 - a benchmark lives as long as its evaluation
    def _plans(self, seed: int) -> list[Plan]:
        queries = [f"{number:05d}" for number in range(self.queries)]
        if self.stored is not None:
            known = {view.key for concept in self.concepts for view in concept.views}
            return stored_plans(self.stored, self.name, seed, queries, known)
        return [self._plan(query, seed) for query in queries]

    def _plan(self, query: str, seed: int) -> Plan:
        pools = [[view.key for view in views] for views in self._drawn(query).views]
        rounds = min(*map(len, pools), max(*self.shots, ZERO_SHOT_TEXTS))
        return plan_balanced(seed, self.name, query, pools, rounds)

    def _drawn(self, query: str) -> _Drawn:
        draw = generator(self.seed, self.name, query, "episode")
        concepts = draw.sample(list(self.concepts), self.ways)
        words = draw.sample(list(self.words), self.ways)
        target = draw.randrange(self.ways)
        asked = draw.choice(concepts[target].views)
        views = [[view for view in concept.views if view != asked] for concept in concepts]
        return _Drawn(target, asked, words, views)

    def _episode(self, plan: Plan, shots: int) -> Episode:
        drawn = self._drawn(plan.query)
        shown = {
            view.key: Item(view.key, Media((view,)), "", word)
            for views, word in zip(drawn.views, drawn.words, strict=True)
            for view in views
        }
        word = drawn.words[drawn.target]
        return Episode(
            query=Item(plan.query, Media((drawn.asked,)), "", word),
            demonstrations=tuple(demonstrated(plan, shots * self.ways, shown)),
            shots=shots,
            candidates=tuple(sorted(drawn.words)),
            cluster=drawn.asked.key,
            references=(word,),
        )

    @property
    def borrowed(self) -> Borrowed:
        return self._borrowed

    @cached_property
    def _borrowed(self) -> Borrowed:
        views = (view for concept in self.concepts for view in concept.views)
        return Borrowed(tuple(Media((view,)) for view in views))

    def prior(self) -> None:
        return None


def demonstrated(plan: Plan, count: int, shown: Mapping[str, Item]) -> list[Item]:
    """The ``count`` demonstrations of a plan, of what the query's episode can show.

    Raises ``ValueError`` for one that it cannot (in a plan that was edited).
    """
    chosen = plan.presented(count)
    for name in chosen:
        if name not in shown:
            raise ValueError(
                f"plans of {plan.benchmark}, query {plan.query!r}: expected demonstrations of the "
                f"classes of its episode, got {name!r}"
            )
    return [shown[name] for name in chosen]
