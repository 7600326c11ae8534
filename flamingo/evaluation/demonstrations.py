"""Which demonstrations a query gets: pure, nested plans.

A plan depends on (seed, benchmark, query id, strategy) and the pool alone. Demonstrations are drawn
starting next to the query and going backwards, so that the ``k``-shot set is the last ``k`` of
every longer one, whatever the batch size, the world size, the limit on queries, or the list of
shot counts that happens to run.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path


class Strategy(Enum):
    """How demonstrations are chosen."""

    random = "random"
    """Uniformly from the pool, without replacement."""
    balanced = "balanced"
    """In rounds: each round holds one demonstration of every class, in random order."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The demonstrations of one query, by id; the last one stands next to the query."""

    seed: int
    benchmark: str
    query: str
    strategy: Strategy
    demonstrations: tuple[str, ...]

    def last(self, count: int) -> tuple[str, ...]:
        """The ``count`` demonstrations next to the query.

        Raises ``ValueError`` if the plan is shorter.
        """
        if not 0 <= count <= len(self.demonstrations):
            raise ValueError(
                f"shots: expected between 0 and {len(self.demonstrations)} demonstrations for "
                f"query {self.query!r} of {self.benchmark}, got {count}"
            )
        return self.demonstrations[len(self.demonstrations) - count :]

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"strategy": self.strategy.value})

    @classmethod
    def from_json(cls, line: str) -> Plan:
        values = json.loads(line)
        return cls(
            seed=values["seed"],
            benchmark=values["benchmark"],
            query=values["query"],
            strategy=Strategy(values["strategy"]),
            demonstrations=tuple(values["demonstrations"]),
        )


def write_plans(plans: Iterable[Plan], path: Path) -> None:
    """One plan a line."""
    path.write_text("".join(plan.to_json() + "\n" for plan in plans), encoding="utf-8")


def read_plans(path: Path) -> list[Plan]:
    """What :func:`write_plans` wrote."""
    return [Plan.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def generator(*parts: object) -> random.Random:
    """A random generator that depends on ``parts`` alone (not on process, platform or order)."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def plan_random(seed: int, benchmark: str, query: str, pool: Sequence[str], longest: int) -> Plan:
    """``longest`` different demonstrations drawn uniformly from ``pool``.

    Raises ``ValueError`` if the pool is smaller than that.
    """
    if longest > len(pool):
        raise ValueError(
            f"shots: expected at most the {len(pool)} demonstrations of {benchmark}, got {longest}"
        )
    draw = generator(seed, benchmark, query, Strategy.random.value)
    # One draw after the other: asking for more draws changes none of the earlier ones.
    indices: list[int] = []
    taken: set[int] = set()
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
