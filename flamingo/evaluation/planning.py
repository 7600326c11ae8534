"""The plans of a benchmark's queries, from settings: one builder over all strategies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from flamingo.choices import Exclusion, Order, Strategy
from flamingo.evaluation.demonstrations import plan_fixed, plan_label_balanced, plan_random
from flamingo.evaluation.plans import Parameter, Plan
from flamingo.evaluation.pool import Listing
from flamingo.evaluation.retrieval import Finder, Index, Neighbours, search
from flamingo.evaluation.similarity import plan_diverse, plan_rices, with_order

SIMILAR_ORDERS = (Order.similar_last, Order.similar_first)


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How the demonstrations of a benchmark are chosen and ordered.

    ``longest`` is the largest number of shots; a shorter plan is the end of a longer one.
    ``fixed`` are the ids of the strategy fixed, in reading order. ``relevance`` and ``candidates``
    belong to the strategy diverse: the weight of the query's similarity against that among the
    demonstrations, and how many of the most similar ones are considered.
    """

    strategy: Strategy = Strategy.random
    order: Order = Order.drawn
    exclusion: Exclusion = Exclusion.same_image
    seed: int = 0
    order_seed: int = 0
    longest: int = 32
    fixed: tuple[str, ...] = ()
    relevance: float = 0.5
    candidates: int = 128

    def __post_init__(self) -> None:
        if self.longest < 0:
            raise ValueError(f"longest: expected >= 0, got {self.longest}")
        if not 0 <= self.relevance <= 1:
            raise ValueError(f"relevance: expected a number of [0, 1], got {self.relevance}")
        if (self.strategy is Strategy.fixed) != bool(self.fixed):
            raise ValueError(
                "fixed: expected ids with strategy=fixed and only then, "
                f"got strategy={self.strategy.value}, {len(self.fixed)} ids"
            )
        if self.strategy is Strategy.balanced:
            raise ValueError(
                "strategy: expected label_balanced for a pool with labels (balanced belongs to "
                "benchmarks whose episodes have classes of their own), got balanced"
            )
        if self.strategy is Strategy.diverse and self.candidates < self.longest:
            raise ValueError(
                f"candidates: expected at least the {self.longest} longest, got {self.candidates}"
            )

    @property
    def needs_similarity(self) -> bool:
        """Whether :class:`Similar` features must be given."""
        return self.strategy in (Strategy.rices, Strategy.diverse) or self.order in SIMILAR_ORDERS


@dataclass(frozen=True)
class Similar:
    """Retrieval features: ``index`` over the pool, ``vectors`` of the queries, in their orders.

    ``name`` says what they are (encoder, pooling, weights of a mixture): plans record it.
    """

    index: Index
    vectors: Float[Tensor, "query dim"]
    name: str


def make_plans(
    settings: PlanSettings,
    benchmark: str,
    queries: Listing,
    pool: Listing,
    similar: Similar | None = None,
    finder: Finder | None = None,
) -> list[Plan]:
    """One plan for each of ``queries``, in their order.

    A query's plan is the same whichever other queries there are. ``queries`` and ``pool`` must
    identify images alike, and as ``settings.exclusion`` says. ``finder`` searches the index
    (default: in torch on the CPU). Raises ``ValueError`` if the pool has too few demonstrations for
    a query, or features are missing or of other numbers of items.
    """
    _check_similar(settings, queries, pool, similar)
    excluded = [_excluded(settings, pool, queries, i) for i in range(len(queries.ids))]
    parameters = tuple(_parameters(settings, similar))
    plans = []
    drawn = _drawn(settings, benchmark, queries, pool, excluded, similar, finder)
    for number, plan in enumerate(drawn):
        index, vector = (similar.index, similar.vectors[number]) if similar else (None, None)
        plan = with_order(plan, settings.order, settings.order_seed, pool, index, vector)
        plans.append(replace(plan, exclusion=settings.exclusion, parameters=parameters))
    return plans


def _drawn(
    settings: PlanSettings,
    benchmark: str,
    queries: Listing,
    pool: Listing,
    excluded: Sequence[frozenset[int]],
    similar: Similar | None,
    finder: Finder | None,
) -> Iterator[Plan]:
    seed, longest = settings.seed, settings.longest
    match settings.strategy:
        case Strategy.random:
            for query, own in zip(queries.ids, excluded, strict=True):
                yield plan_random(seed, benchmark, query, pool.ids, longest, own)
        case Strategy.label_balanced:
            for query, own in zip(queries.ids, excluded, strict=True):
                yield plan_label_balanced(seed, benchmark, query, pool, longest, own)
        case Strategy.fixed:
            for query, own in zip(queries.ids, excluded, strict=True):
                yield plan_fixed(seed, benchmark, query, pool, settings.fixed, longest, own)
        case Strategy.rices:
            assert similar is not None
            found = _search(similar, longest, excluded, finder)
            for number, query in enumerate(queries.ids):
                yield plan_rices(seed, benchmark, query, pool, found.of(number), longest)
        case Strategy.diverse:
            assert similar is not None
            found = _search(similar, settings.candidates, excluded, finder)
            for number, query in enumerate(queries.ids):
                nearest = found.of(number)
                yield plan_diverse(
                    seed,
                    benchmark,
                    query,
                    pool,
                    nearest,
                    found.scores[number, : len(nearest)],
                    similar.index,
                    longest,
                    settings.relevance,
                )
        case Strategy.balanced:
            raise AssertionError("refused by the settings")


def _search(
    similar: Similar, count: int, excluded: Sequence[frozenset[int]], finder: Finder | None
) -> Neighbours:
    count = min(count, len(similar.index))
    return search(similar.index, similar.vectors, count, excluded, finder)


def _excluded(
    settings: PlanSettings, pool: Listing, queries: Listing, query: int
) -> frozenset[int]:
    images = () if settings.exclusion is Exclusion.nothing else queries.images[query]
    return pool.excluded(queries.ids[query], images)


def _parameters(settings: PlanSettings, similar: Similar | None) -> Iterator[tuple[str, Parameter]]:
    if settings.needs_similarity and similar is not None:
        yield "features", similar.name
    if settings.strategy is Strategy.diverse:
        yield "relevance", settings.relevance
        yield "candidates", settings.candidates


def _check_similar(
    settings: PlanSettings, queries: Listing, pool: Listing, similar: Similar | None
) -> None:
    if similar is None:
        if settings.needs_similarity:
            raise ValueError(
                f"similar: expected retrieval features with strategy={settings.strategy.value} and "
                f"order={settings.order.value}, got none"
            )
        return
    for name, features, ids in (
        ("index", len(similar.index), len(pool.ids)),
        ("vectors", len(similar.vectors), len(queries.ids)),
    ):
        if features != ids:
            raise ValueError(
                f"similar.{name}: expected one for each of {ids} items, got {features}"
            )
