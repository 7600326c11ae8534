"""Concept binding: which made-up word names this image, when only the context tells.

An episode draws ``ways`` concepts and as many held-out words, gives the words to the concepts at
random, shows ``k`` images of each concept with its word, and asks for the word of a new image. The
episode's words are the candidates. Every query asks for each concept with equal probability
whatever the order of its context, so that blind answers and position rules are right in
``1 / ways`` of the cases in expectation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from flamingo.choices import Metric
from flamingo.data.concepts import Concept
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.demonstrations import generator, plan_balanced
from flamingo.evaluation.perturbations import Borrowed
from flamingo.evaluation.prompts import BINDING, Episode, Item
from flamingo.evaluation.tasks import Task, first
from flamingo.types import ImageRef, Media

BINDING_TASK = Task(
    template=BINDING,
    decoding=Decoding(),
    metric=Metric.exact_match,
    shown=first,
)


@dataclass(frozen=True)
class BindingBenchmark:
    """``queries`` episodes over ``concepts``; images are never repeated within an episode.

    ``k`` shots a class need ``k + 1`` images of every concept. An item's id is its image's key,
    a query's its number. Raises ``ValueError`` for more ways than concepts or words.
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
        return [self._episode(f"{number:05d}", shots, seed) for number in range(self.queries)]

    def _episode(self, query: str, shots: int, seed: int) -> Episode:
        draw = generator(self.seed, self.name, query, "episode")
        concepts = draw.sample(list(self.concepts), self.ways)
        words = draw.sample(list(self.words), self.ways)
        target = draw.randrange(self.ways)
        asked = draw.choice(concepts[target].views)
        views: list[list[ImageRef]] = [
            [view for view in concept.views if view != asked] for concept in concepts
        ]
        shown = {
            view.key: Item(view.key, Media((view,)), "", word)
            for pool, word in zip(views, words, strict=True)
            for view in pool
        }
        pools = [[view.key for view in pool] for pool in views]
        longest = min(len(pool) for pool in pools)
        plan = plan_balanced(seed, self.name, query, pools, longest)
        return Episode(
            query=Item(query, Media((asked,)), "", words[target]),
            demonstrations=tuple(shown[name] for name in plan.last(shots * self.ways)),
            shots=shots,
            candidates=tuple(sorted(words)),
            cluster=asked.key,
            references=(words[target],),
        )

    @cached_property
    def borrowed(self) -> Borrowed:
        views = (view for concept in self.concepts for view in concept.views)
        return Borrowed(tuple(Media((view,)) for view in views))

    @property
    def pool(self) -> tuple[Item, ...]:
        """None: an item has a word in an episode only."""
        return ()
