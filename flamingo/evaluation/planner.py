"""From the configuration of demonstrations to the plans of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from flamingo.choices import Exclusion, Strategy
from flamingo.evaluation.planning import PlanSettings, Similar, make_plans
from flamingo.evaluation.plans import Plan, check_pool, plan_file, read_plans
from flamingo.evaluation.pool import Identity, Listing, by_content, by_key
from flamingo.evaluation.prompts import Item
from flamingo.evaluation.retrieval_faiss import FaissFinder, load_faiss
from flamingo.evaluation_config import DemonstrationsConfig

Retrieve = Callable[[Sequence[Item], Sequence[Item]], Similar]
"""Retrieval features of queries and pool; called only where similarity matters."""

MakePlans = Callable[[str, int, Sequence[Item], Sequence[Item], int], list[Plan]]
"""Plans of a benchmark's name, seed, queries, pool, and longest shot count: a :class:`Planner`."""


@dataclass(frozen=True)
class Planner:
    """Plans demonstrations as ``config`` says. ``retrieve`` may be None where it never matters."""

    config: DemonstrationsConfig
    retrieve: Retrieve | None = None

    def __call__(
        self,
        benchmark: str,
        seed: int,
        queries: Sequence[Item],
        pool: Sequence[Item],
        longest: int,
    ) -> list[Plan]:
        """A plan for each query, in their order: ``longest`` demonstrations, or what there is.

        Pure in all arguments but the files that ``config.plans`` names and the retrieval features.
        A query's plan does not depend on the other queries. Raises ``ValueError`` as
        :func:`make_plans` and :func:`stored_plans` do.
        """
        if self.config.plans is not None:
            ids, known = [item.id for item in queries], {item.id for item in pool}
            return stored_plans(Path(self.config.plans), benchmark, seed, ids, known)
        asked, offered = Listing.of(queries, self._identity), Listing.of(pool, self._identity)
        settings = PlanSettings(
            config=self.config, seed=seed, longest=min(longest, self._available(asked, offered))
        )
        similar = None
        if settings.needs_similarity and settings.longest:
            if self.retrieve is None:
                raise ValueError(
                    f"evaluation.demonstrations: {benchmark} has no retrieval features for "
                    f"strategy={self.config.strategy.value}, order={self.config.order.value}"
                )
            if self.config.faiss is not None:
                load_faiss()  # refuses before anything is encoded
            similar = self.retrieve(queries, pool)
        finder = None
        if similar is not None and self.config.faiss is not None:
            finder = FaissFinder(similar.index, self.config.faiss)
        return make_plans(settings, benchmark, asked, offered, similar, finder)

    @cached_property
    def _identity(self) -> Identity:
        """What makes two images the same; each is opened once, whatever the number of seeds."""
        return cache(by_content) if self.config.exclusion is Exclusion.same_content else by_key

    def _available(self, asked: Listing, offered: Listing) -> int:
        """Demonstrations that every query can be shown."""
        same_image = self.config.exclusion is not Exclusion.nothing
        excluded = [
            offered.excluded(query, images if same_image else ())
            for query, images in zip(asked.ids, asked.images, strict=True)
        ]
        if self.config.strategy is Strategy.fixed:
            places = [offered.place.get(name) for name in self.config.fixed]
            return min(sum(place not in own for place in places) for own in excluded)
        return len(offered.ids) - max(map(len, excluded))


@dataclass(frozen=True)
class PlannerByPool:
    """Plans for queries that each have a pool of their own: ``pools`` holds its ids by query."""

    planner: MakePlans
    pools: Mapping[str, frozenset[str]]

    def __call__(
        self,
        benchmark: str,
        seed: int,
        queries: Sequence[Item],
        pool: Sequence[Item],
        longest: int,
    ) -> list[Plan]:
        """As :class:`Planner`, each query with what of ``pool`` is its own."""
        plans: dict[str, Plan] = {}
        for ids in dict.fromkeys(self.pools[item.id] for item in queries):
            own = [item for item in queries if self.pools[item.id] == ids]
            offered = [item for item in pool if item.id in ids]
            plans |= {p.query: p for p in self.planner(benchmark, seed, own, offered, longest)}
        return [plans[item.id] for item in queries]


def stored_plans(
    folder: Path, benchmark: str, seed: int, queries: Sequence[str], pool: Collection[str]
) -> list[Plan]:
    """The plan of each of ``queries``, in their order, from a folder of plans.

    The file may hold plans of other queries, whose pool may be another. Raises ``ValueError``
    naming the file if it is missing, as :func:`read_plans` does, for a query without a plan or with
    two (of two strategies), and for a demonstration of one that is not in ``pool``.
    """
    path = plan_file(folder, benchmark, seed)
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of plans, found none")
    plans: dict[str, Plan] = {}
    asked = set(queries)
    for number, plan in enumerate(read_plans(path, benchmark=benchmark), start=1):
        if plan.query in asked:
            try:
                if plan.query in plans:
                    raise ValueError(f"query: expected each once, got {plan.query!r} again")
                check_pool(plan, pool)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            plans[plan.query] = plan
    missing = [name for name in queries if name not in plans]
    if missing:
        raise ValueError(
            f"{path}: expected a plan for each of {len(queries)} queries, "
            f"found none for {len(missing)}, such as {missing[0]!r}"
        )
    return [plans[name] for name in queries]
