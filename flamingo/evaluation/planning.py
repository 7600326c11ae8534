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
from flamingo.evaluation_config import DemonstrationsConfig

SIMILAR_ORDERS = (Order.similar_last, Order.similar_first)


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """``config`` says how demonstrations are chosen and ordered, ``seed`` draws them.

    ``longest`` is the largest number of shots; a shorter plan is the end of a longer one.
    """

    config: DemonstrationsConfig
    seed: int = 0
    longest: int = 32

    def __post_init__(self) -> None:
        if self.longest < 0:
            raise ValueError(f"longest: expected >= 0, got {self.longest}")
        if self.config.strategy is Strategy.diverse and self.config.candidates < self.longest:
            raise ValueError(
                "evaluation.demonstrations.candidates: expected at least the longest plan's "
                f"{self.longest} demonstrations, got {self.config.candidates}"
            )

    @property
    def order_seed(self) -> int:
        own = self.config.order_seed
        return self.seed if own is None else own

    @property
    def needs_similarity(self) -> bool:
        """Whether :class:`Similar` features must be given."""
        by_strategy = self.config.strategy in (Strategy.rices, Strategy.diverse)
        return by_strategy or self.config.order in SIMILAR_ORDERS


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
    identify images alike, and as ``settings.config.exclusion`` says. ``finder`` searches the index
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
        plan = with_order(plan, settings.config.order, settings.order_seed, pool, index, vector)
        plans.append(replace(plan, exclusion=settings.config.exclusion, parameters=parameters))
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
    match settings.config.strategy:
        case Strategy.random:
            for query, own in zip(queries.ids, excluded, strict=True):
                yield plan_random(seed, benchmark, query, pool.ids, longest, own)
        case Strategy.label_balanced:
            for query, own in zip(queries.ids, excluded, strict=True):
                yield plan_label_balanced(seed, benchmark, query, pool, longest, own)
        case Strategy.fixed:
            for query, own in zip(queries.ids, excluded, strict=True):
                yield plan_fixed(seed, benchmark, query, pool, settings.config.fixed, longest, own)
        case Strategy.rices:
            assert similar is not None
            found = _search(similar, longest, excluded, finder)
            for number, query in enumerate(queries.ids):
                yield plan_rices(seed, benchmark, query, pool, found.of(number), longest)
        case Strategy.diverse:
            assert similar is not None
            found = _search(similar, settings.config.candidates, excluded, finder)
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
                    settings.config.relevance,
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
    images = () if settings.config.exclusion is Exclusion.nothing else queries.images[query]
    return pool.excluded(queries.ids[query], images)


def _parameters(settings: PlanSettings, similar: Similar | None) -> Iterator[tuple[str, Parameter]]:
    if settings.needs_similarity and similar is not None:
        yield "features", similar.name
    if settings.config.strategy is Strategy.diverse:
        yield "relevance", settings.config.relevance
        yield "candidates", settings.config.candidates


def _check_similar(
    settings: PlanSettings, queries: Listing, pool: Listing, similar: Similar | None
) -> None:
    if similar is None:
        if settings.needs_similarity:
            raise ValueError(
                "similar: expected retrieval features with "
                f"strategy={settings.config.strategy.value} and "
                f"order={settings.config.order.value}, got none"
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
