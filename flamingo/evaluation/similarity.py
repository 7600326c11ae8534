"""Demonstrations that resemble the query: RICES, diverse choice, and order by similarity.

Similarity is the cosine of retrieval features (``retrieval_features``) of the image, of the
question, or their weighted sum (``retrieval.mix``). Everything here is about one query: nothing
depends on which other queries are asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from torch import Tensor

from flamingo.choices import Order, Strategy
from flamingo.evaluation.plans import Plan
from flamingo.evaluation.pool import Listing
from flamingo.evaluation.retrieval import Index, normalize


def plan_rices(
    seed: int, benchmark: str, query: str, pool: Listing, nearest: Sequence[int], longest: int
) -> Plan:
    """The ``longest`` most similar demonstrations, the most similar last.

    ``nearest`` are places in the pool, the most similar first, without what is excluded (from
    ``retrieval.search``). Retrieval-based in-context example selection: Yang et al. 2022 (PICa,
    arXiv:2109.05014), Flamingo, appendix A.2. Raises ``ValueError`` if there are fewer.
    """
    _enough(benchmark, query, nearest, longest)
    chosen = tuple(pool.ids[place] for place in reversed(nearest[:longest]))
    return Plan(seed, benchmark, query, Strategy.rices, chosen)


def plan_diverse(
    seed: int,
    benchmark: str,
    query: str,
    pool: Listing,
    nearest: Sequence[int],
    scores: Float[Tensor, " nearest"],
    index: Index,
    longest: int,
    relevance: float,
) -> Plan:
    """``longest`` of the ``nearest`` by maximal marginal relevance (:func:`mmr`).

    The first choice, which is the most similar of all, stands last. As every choice depends on the
    earlier ones alone, a shorter plan is the last of a longer one for the same candidates
    ``nearest``, whose number must therefore not follow ``longest``. Raises ``ValueError`` if there
    are fewer than ``longest``.
    """
    _enough(benchmark, query, nearest, longest)
    vectors = index.vectors[index.owner[list(nearest)]]
    order = mmr(scores, vectors, longest, relevance)
    chosen = tuple(pool.ids[nearest[candidate]] for candidate in reversed(order))
    return Plan(seed, benchmark, query, Strategy.diverse, chosen)


def mmr(
    scores: Float[Tensor, " candidate"],
    vectors: Float[Tensor, "candidate dim"],
    count: int,
    relevance: float,
) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein 1998, SIGIR, equation 1).

    Chooses one after the other the candidate with the largest

        relevance * score - (1 - relevance) * max over the chosen c of cos(candidate, c)

    (nothing is subtracted for the first). Of equal ones the first. ``relevance`` 1 keeps the order
    of the scores. Cosines are computed in fp64 and rounded to fp32, as scores are. Raises
    ``ValueError`` for a ``relevance`` outside [0, 1] or too few candidates.
    """
    if not 0 <= relevance <= 1:
        raise ValueError(f"relevance: expected a number of [0, 1], got {relevance}")
    if count > len(scores):
        raise ValueError(f"count: expected at most the {len(scores)} candidates, got {count}")
    own = scores.double().numpy()
    unit = normalize(vectors).double().numpy()
    closest = np.zeros(len(own))
    free = np.ones(len(own), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < count:
        gain = np.where(free, relevance * own - (1 - relevance) * closest, -np.inf)
        best = int(gain.argmax())
        alike = (unit @ unit[best]).astype(np.float32).astype(np.float64)
        closest = np.maximum(closest, alike) if chosen else alike
        free[best] = False
        chosen.append(best)
    return chosen


def with_order(
    plan: Plan,
    order: Order,
    order_seed: int,
    pool: Listing,
    index: Index | None = None,
    vector: Float[Tensor, " dim"] | None = None,
) -> Plan:
    """``plan`` presented in ``order``: the same sets at all shot counts.

    The orders by similarity need the pool's ``index`` and the query's ``vector``; of equally
    similar demonstrations the one with the lower place in the pool counts as the more similar.
    Raises ``ValueError`` if they are missing.
    """
    match order:
        case Order.drawn | Order.shuffled:
            return replace(plan, order=order, order_seed=order_seed)
        case Order.similar_last | Order.similar_first:
            if index is None or vector is None:
                raise ValueError(
                    f"order: expected retrieval features with {order.value}, got none for query "
                    f"{plan.query!r} of {plan.benchmark}"
                )
    places = [pool.place[name] for name in plan.demonstrations]
    scores = index.similarities(vector, places).tolist()
    nearest = sorted(range(len(places)), key=lambda i: (-scores[i], places[i]))
    ranks = [0] * len(places)
    for rank, position in enumerate(nearest):
        ranks[position] = rank
    return replace(plan, order=order, order_seed=order_seed, ranks=tuple(ranks))


def _enough(benchmark: str, query: str, nearest: Sequence[int], longest: int) -> None:
    if longest > len(nearest):
        raise ValueError(
            f"shots: expected at most the {len(nearest)} demonstrations of {benchmark} that can be "
            f"shown with query {query!r}, got {longest}"
        )
