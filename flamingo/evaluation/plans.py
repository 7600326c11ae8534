"""Plans: which demonstrations a query gets and in which order, as data on disk.

A plan can be written, inspected, changed by hand and used again apart from inference. It depends on
(seed, benchmark, query id, strategy) and the pool alone, and its ``k``-shot set is the last ``k``
of the longest, whatever the :class:`Order` the set is then presented in.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, NotRequired

from pydantic import ConfigDict, PlainValidator, TypeAdapter, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict  # before Python 3.12 pydantic wants this one

from flamingo.choices import Exclusion, Order, Strategy
from flamingo.evaluation.draws import generator
from flamingo.files import write_atomically
from flamingo.typed_json import parse_json

Parameter = str | int | float


@dataclass(frozen=True, slots=True)
class Plan:
    """The demonstrations of one query, by id; the last one stands next to the query.

    ``ranks`` says how similar each demonstration is (0: the most similar of them); only the orders
    by similarity need it. ``parameters`` are what else the strategy depends on, by name.
    """

    seed: int
    benchmark: str
    query: str
    strategy: Strategy
    demonstrations: tuple[str, ...]
    order: Order = Order.drawn
    order_seed: int = 0
    exclusion: Exclusion = Exclusion.nothing
    ranks: tuple[int, ...] = ()
    parameters: tuple[tuple[str, Parameter], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.demonstrations)
        if len(set(self.demonstrations)) < count:
            twice = [d for d in self.demonstrations if self.demonstrations.count(d) > 1]
            raise ValueError(f"demonstrations: expected each once, got {twice[0]!r} twice")
        needed = self.order in (Order.similar_last, Order.similar_first)
        if (needed or self.ranks) and sorted(self.ranks) != list(range(count)):
            raise ValueError(
                f"ranks: expected each of 0 to {count - 1} once (order {self.order.value}), "
                f"got {list(self.ranks)}"
            )

    def last(self, count: int) -> tuple[str, ...]:
        """The ``count`` demonstrations next to the query, as drawn.

        Raises ``ValueError`` if the plan is shorter.
        """
        if not 0 <= count <= len(self.demonstrations):
            raise ValueError(
                f"shots: expected between 0 and {len(self.demonstrations)} demonstrations for "
                f"query {self.query!r} of {self.benchmark}, got {count}"
            )
        return self.demonstrations[len(self.demonstrations) - count :]

    def presented(self, count: int) -> tuple[str, ...]:
        """The set :meth:`last` gives, in the plan's own order."""
        chosen = self.last(count)
        match self.order:
            case Order.drawn:
                return chosen
            case Order.similar_last | Order.similar_first:
                rank = dict(zip(self.demonstrations, self.ranks, strict=True))
                last = self.order is Order.similar_last
                return tuple(sorted(chosen, key=rank.__getitem__, reverse=last))
            case Order.shuffled:
                return tuple(sorted(chosen, key=self._place))

    def _place(self, demonstration: str) -> tuple[float, str]:
        # A number of its own for each demonstration: the other shots change nothing about it.
        own = generator(self.order_seed, self.benchmark, self.query, "order", demonstration)
        return own.random(), demonstration

    def to_json(self) -> str:
        enums = {"strategy": self.strategy, "order": self.order, "exclusion": self.exclusion}
        values = {name: member.value for name, member in enums.items()}
        return json.dumps(asdict(self) | values | {"parameters": dict(self.parameters)})

    @classmethod
    def from_json(cls, line: str) -> Plan:
        """What :meth:`to_json` wrote (fields with a default may be missing).

        Raises ``ValueError`` naming the field.
        """
        values = parse_json(_LINE.validate_json, line)
        parameters = values.get("parameters", {})
        return cls(**{**values, "parameters": tuple(parameters.items())})


def _parameter(value: object) -> Parameter:
    if not isinstance(value, Parameter) or isinstance(value, bool):
        raise PydanticCustomError("parameter", "Input should be a text or a number")
    return value


@with_config(ConfigDict(extra="forbid"))
class _Line(TypedDict):
    """A plan as JSON: what has a default in :class:`Plan` may be missing."""

    seed: int
    benchmark: str
    query: str
    strategy: Strategy
    demonstrations: tuple[str, ...]
    order: NotRequired[Order]
    order_seed: NotRequired[int]
    exclusion: NotRequired[Exclusion]
    ranks: NotRequired[tuple[int, ...]]
    parameters: NotRequired[dict[str, Annotated[Parameter, PlainValidator(_parameter)]]]


_LINE = TypeAdapter(_Line)


# ---------------------------------------------------------------------------- files


def plan_file(folder: Path, benchmark: str, seed: int) -> Path:
    """Where a folder of plans keeps those of a benchmark and a draw of demonstrations."""
    return folder / benchmark / f"seed={seed}.jsonl"


def write_plans(plans: Iterable[Plan], path: Path) -> None:
    """One plan a line; an existing file is replaced whole or not at all."""
    write_atomically(path, plan_lines(plans))


def plan_lines(plans: Iterable[Plan]) -> str:
    """What a file of these plans holds."""
    return "".join(plan.to_json() + "\n" for plan in plans)


def read_plans(
    path: Path,
    *,
    benchmark: str | None = None,
    queries: Container[str] | None = None,
    pool: Container[str] | None = None,
) -> list[Plan]:
    """What :func:`write_plans` wrote, or what a user edited of it.

    Raises ``ValueError`` naming file, line and field if a line is no plan, repeats a demonstration
    or an earlier line's query, or does not belong: another ``benchmark``, a query that is not among
    ``queries``, a demonstration that is not in ``pool`` (each checked where it is given).
    """
    plans: list[Plan] = []
    seen: dict[Plan, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            plan = Plan.from_json(line)
            _check(plan, benchmark, queries, pool)
            # Two lines that differ in their demonstrations alone contradict each other.
            same = replace(plan, demonstrations=(), ranks=())
            if same in seen:
                raise ValueError(
                    f"query: expected each once, got {plan.query!r} again (line {seen[same]})"
                )
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        seen[same] = number
        plans.append(plan)
    return plans


def _check(
    plan: Plan,
    benchmark: str | None,
    queries: Container[str] | None,
    pool: Container[str] | None,
) -> None:
    if benchmark is not None and plan.benchmark != benchmark:
        raise ValueError(f"benchmark: expected {benchmark!r}, got {plan.benchmark!r}")
    if queries is not None and plan.query not in queries:
        raise ValueError(f"query: expected one of {plan.benchmark}, got {plan.query!r}")
    if pool is not None:
        check_pool(plan, pool)


def check_pool(plan: Plan, pool: Container[str]) -> None:
    """Raise ``ValueError`` for a demonstration that is not in ``pool``."""
    for demonstration in plan.demonstrations:
        if demonstration not in pool:
            raise ValueError(
                f"demonstrations: expected ids of the pool of {plan.benchmark}, "
                f"got {demonstration!r}"
            )
