"""Which demonstrations a query gets: pure, nested plans.

A plan depends on (seed, benchmark, query id, strategy) and the pool alone. Demonstrations are drawn
starting next to the query and going backwards, so that the ``k``-shot set is the last ``k`` of
every longer one, whatever the batch size, the world size, the limit on queries, or the list of
shot counts that happens to run.

This file draws without looking at similarity; ``similarity`` holds the strategies that do, and
``planning`` makes the plans of a whole benchmark from settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from itertools import count, islice

from flamingo.choices import Exclusion, Order, Strategy
from flamingo.evaluation.draws import generator, permutation
from flamingo.evaluation.plans import Plan, read_plans, write_plans
from flamingo.evaluation.pool import Listing

__all__ = [
    "Exclusion",
    "Order",
    "Plan",
    "Strategy",
    "generator",
    "plan_balanced",
    "plan_fixed",
    "plan_label_balanced",
    "plan_random",
    "read_plans",
    "write_plans",
]


def plan_random(
    seed: int,
    benchmark: str,
    query: str,
    pool: Sequence[str],
    longest: int,
    excluded: Collection[int] = frozenset(),
) -> Plan:
    """``longest`` different demonstrations drawn uniformly from ``pool``.

    ``excluded`` are the places in the pool that the query may not get; they are passed over when
    drawn, so a query that excludes nothing it would have been given keeps its plan. Raises
    ``ValueError`` if the pool is smaller than that.
    """
    if longest > len(pool) - len(excluded):
        less = f" less {len(excluded)} excluded for query {query!r}" if excluded else ""
        raise ValueError(
            f"shots: expected at most the {len(pool)} demonstrations of {benchmark}{less}, "
            f"got {longest}"
        )
    draw = generator(seed, benchmark, query, Strategy.random.value)
    # One draw after the other: asking for more draws changes none of the earlier ones.
    indices: list[int] = []
    taken = set(excluded)
    while len(indices) < longest:
        index = draw.randrange(len(pool))
        if index not in taken:
            taken.add(index)
            indices.append(index)
    demonstrations = tuple(pool[index] for index in reversed(indices))
    return Plan(seed, benchmark, query, Strategy.random, demonstrations)


def plan_balanced(
    seed: int, benchmark: str, query: str, classes: Sequence[Sequence[str]], rounds: int
) -> Plan:
    """``rounds`` demonstrations of each class; ``k`` shots a class are the last ``k`` rounds.

    ``classes`` lists the demonstrations each class offers. Raises ``ValueError`` if a class has
    fewer than ``rounds``.
    """
    fewest = min(len(pool) for pool in classes)
    if rounds > fewest:
        raise ValueError(
            f"shots: expected at most {fewest} a class in query {query!r} of {benchmark} "
            f"(its smallest class), got {rounds}"
        )
    draw = generator(seed, benchmark, query, Strategy.balanced.value)
    shuffled = [draw.sample(list(pool), len(pool)) for pool in classes]
    backwards: list[str] = []
    for position in range(rounds):
        order = draw.sample(range(len(classes)), len(classes))
        backwards += [shuffled[index][position] for index in order]
    return Plan(seed, benchmark, query, Strategy.balanced, tuple(reversed(backwards)))


def plan_label_balanced(
    seed: int,
    benchmark: str,
    query: str,
    pool: Listing,
    longest: int,
    excluded: Collection[int] = frozenset(),
) -> Plan:
    """``longest`` demonstrations in rounds over the labels of ``pool``, drawn like the balanced.

    How often two labels appear among the last ``k`` differs by at most one. A label whose
    demonstrations are all ``excluded`` takes no part. Raises ``ValueError`` naming the label if one
    runs out.
    """
    gone = Counter(pool.labels[index] for index in excluded)
    labels = [name for name, own in pool.by_label.items() if len(own) > gone[name]]
    if not labels and longest:
        raise ValueError(
            f"shots: expected at most 0, as all of {benchmark} is excluded for query {query!r}, "
            f"got {longest}"
        )

    @cache
    def offers(name: str) -> Iterator[int]:
        own = pool.by_label[name]
        order = permutation(generator(seed, benchmark, query, "label", name), len(own))
        return (own[place] for place in order if own[place] not in excluded)

    draw = generator(seed, benchmark, query, Strategy.label_balanced.value)
    rounds = (labels[place] for _ in count() for place in permutation(draw, len(labels)))
    backwards: list[int] = []
    for name in islice(rounds, longest):
        index = next(offers(name), None)
        if index is None:
            raise ValueError(
                f"shots: expected label {name!r} to have a demonstration for each round of query "
                f"{query!r} of {benchmark}, got {len(pool.by_label[name]) - gone[name]} for "
                f"{longest} shots of {len(labels)} labels"
            )
        backwards.append(index)
    demonstrations = tuple(pool.ids[index] for index in reversed(backwards))
    return Plan(seed, benchmark, query, Strategy.label_balanced, demonstrations)


def plan_fixed(
    seed: int,
    benchmark: str,
    query: str,
    pool: Listing,
    ids: Sequence[str],
    longest: int,
    excluded: Collection[int] = frozenset(),
) -> Plan:
    """The last ``longest`` of ``ids``, the same for every query but for what is ``excluded``.

    An excluded one is passed over and those before it move up. Raises ``ValueError`` for an id that
    is not in the pool, and if too few are left.
    """
    unknown = [name for name in ids if name not in pool.place]
    if unknown:
        raise ValueError(
            f"demonstrations.fixed: expected ids of the pool of {benchmark}, such as "
            f"{pool.ids[0]!r}, got {unknown[0]!r}"
        )
    allowed = tuple(name for name in ids if pool.place[name] not in excluded)
    if longest > len(allowed):
        raise ValueError(
            f"shots: expected at most the {len(ids)} fixed demonstrations less "
            f"{len(ids) - len(allowed)} excluded for query {query!r} of {benchmark}, got {longest}"
        )
    chosen = allowed[len(allowed) - longest :]
    return Plan(seed, benchmark, query, Strategy.fixed, chosen)
