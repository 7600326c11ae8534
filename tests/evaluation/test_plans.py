"""Plans on disk are read as they were written, or refused with line and field."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest

from flamingo.choices import Exclusion, Order, Strategy
from flamingo.evaluation.planner import stored_plans
from flamingo.evaluation.plans import Plan, plan_file, read_plans, write_plans

PLAN = Plan(
    seed=3,
    benchmark="b",
    query="q",
    strategy=Strategy.diverse,
    demonstrations=("x", "y", "z"),
    order=Order.similar_first,
    order_seed=5,
    exclusion=Exclusion.same_content,
    ranks=(2, 0, 1),
    parameters=(("features", "mean 0f"), ("relevance", 0.5), ("candidates", 128)),
)
OLD = json.dumps(
    dict(seed=0, benchmark="b", query="q", strategy="random", demonstrations=["x", "y"])
)
"""A line from before plans had an order."""


def test_a_plan_has_this_literal_line() -> None:
    assert PLAN.to_json() == (
        '{"seed": 3, "benchmark": "b", "query": "q", "strategy": "diverse", '
        '"demonstrations": ["x", "y", "z"], "order": "similar_first", "order_seed": 5, '
        '"exclusion": "same_content", "ranks": [2, 0, 1], '
        '"parameters": {"features": "mean 0f", "relevance": 0.5, "candidates": 128}}'
    )


def test_a_query_with_the_plans_of_two_strategies_is_refused_where_one_is_used(tmp_path) -> None:
    other = replace(PLAN, strategy=Strategy.rices)
    path = plan_file(tmp_path, "b", 3)
    write_plans([replace(PLAN, query="p"), PLAN, other], path)
    assert len(read_plans(path)) == 3
    assert stored_plans(tmp_path, "b", 3, ["p"], {*"xyz"}) == [replace(PLAN, query="p")]
    with pytest.raises(ValueError, match=r"seed=3.jsonl, line 3: query: expected each once, got"):
        stored_plans(tmp_path, "b", 3, ["p", "q"], {*"xyz"})


def test_plans_survive_writing_and_reading(tmp_path: Path) -> None:
    plans = [PLAN, Plan(0, "ünï\u2028code", "q\n2", Strategy.fixed, ()), Plan.from_json(OLD)]
    write_plans(plans, tmp_path / "new" / "plans.jsonl")
    assert read_plans(tmp_path / "new" / "plans.jsonl") == plans
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plans.jsonl"]


def test_an_old_line_is_presented_as_drawn() -> None:
    plan = Plan.from_json(OLD)
    assert plan == Plan(0, "b", "q", Strategy.random, ("x", "y"))
    assert plan.presented(2) == ("x", "y")
    assert plan.exclusion is Exclusion.nothing


@pytest.mark.parametrize(
    ("order", "two", "three"),
    [
        (Order.drawn, ("y", "z"), ("x", "y", "z")),
        (Order.similar_last, ("z", "y"), ("x", "z", "y")),
        (Order.similar_first, ("y", "z"), ("y", "z", "x")),
    ],
)
def test_the_set_is_the_last_drawn_whatever_order_it_is_presented_in(
    order: Order, two: tuple[str, ...], three: tuple[str, ...]
) -> None:
    plan = Plan(0, "b", "q", Strategy.random, ("x", "y", "z"), order=order, ranks=(2, 0, 1))
    assert plan.presented(2) == two
    assert plan.presented(3) == three
    assert plan.presented(0) == ()


def test_a_shuffled_order_depends_on_its_seed_and_is_the_same_part_of_it_at_all_shots() -> None:
    names = tuple(f"d{i}" for i in range(16))

    def shuffled(seed: int, query: str = "q") -> Plan:
        return Plan(0, "b", query, Strategy.random, names, order=Order.shuffled, order_seed=seed)

    longest = shuffled(0).presented(16)
    assert sorted(longest) == sorted(names)
    for shots in range(17):
        chosen = names[16 - shots :]
        assert shuffled(0).presented(shots) == tuple(name for name in longest if name in chosen)
    assert len({shuffled(seed).presented(16) for seed in range(20)}) == 20
    assert shuffled(0, "other").presented(16) != longest
    # The literal order of the first four keeps later versions to it.
    assert shuffled(0).presented(4) == LITERAL_SHUFFLED


LITERAL_SHUFFLED = ("d14", "d12", "d13", "d15")


def test_every_place_is_equally_likely_under_a_shuffled_order() -> None:
    plans = [
        Plan(0, "b", str(q), Strategy.random, tuple("abcd"), order=Order.shuffled)
        for q in range(2000)
    ]
    for place in range(4):
        count = sum(plan.presented(4)[place] == "a" for plan in plans)
        assert abs(count - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "0"}, "seed: expected a valid integer, got '0'"),
        ({"seed": True}, "seed: expected a valid integer, got True"),
        ({"seed": 1.0}, "seed: expected a valid integer, got 1.0"),
        ({"benchmark": None}, "benchmark: expected a valid string, got None"),
        ({"query": 3}, "query: expected a valid string, got 3"),
        ({"strategy": "magic"}, "strategy: expected 'random', .* or 'diverse', got 'magic'"),
        ({"order": ["drawn"]}, r"order: expected 'drawn', .*, got \['drawn'\]"),
        ({"order": None}, "order: expected 'drawn', .*, got None"),
        ({"exclusion": "all"}, "exclusion: expected 'nothing', .*, got 'all'"),
        ({"demonstrations": "xy"}, "demonstrations: expected a valid array, got 'xy'"),
        ({"demonstrations": ["x", 1]}, r"demonstrations\[1\]: expected a valid string, got 1"),
        ({"ranks": [0, "1"]}, r"ranks\[1\]: expected a valid integer, got '1'"),
        ({"demonstrations": ["x", "y", "x"]}, "demonstrations: expected each once, got 'x' twice"),
        ({"ranks": [0]}, r"ranks: expected each of 0 to 1 once \(order drawn\), got \[0\]"),
        ({"order": "similar_last"}, r"ranks: .*\(order similar_last\), got \[\]"),
        ({"parameters": {"a": [1]}}, r"parameters.a: expected a text or a number, got \[1\]"),
        ({"parameters": {"a": True}}, "parameters.a: expected a text or a number, got True"),
        ({"parameters": {"a": None}}, "parameters.a: expected a text or a number, got None"),
        ({"parameters": [1]}, r"parameters: expected an object, got \[1\]"),
        ({"shots": 4}, "shots: expected no field of this name, found one"),
        ({"benchmark": "other"}, "benchmark: expected 'b', got 'other'"),
        ({"query": "unknown"}, "query: expected one of b, got 'unknown'"),
        ({"demonstrations": ["x", "w"]}, "demonstrations: expected ids of the pool of b, got 'w'"),
        ({"demonstrations": ["y", "x"], "query": "q"}, r"query: .* got 'q' again \(line 1\)"),
    ],
)
def test_a_line_that_is_no_plan_is_named_with_its_field(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "plans.jsonl"
    path.write_text(f"{OLD}\n{json.dumps(json.loads(OLD) | {'query': 'r'} | change)}\n")
    with pytest.raises(ValueError, match=rf"plans.jsonl, line 2: {message}"):
        read_plans(path, benchmark="b", queries={"q", "r"}, pool={"x", "y", "z"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "expected JSON; "),
        ("[1]", r"expected an object, got \[1\]"),
        ('{"seed": 0', "expected JSON; .* line 1 column 10"),
        ('{"seed": 0}', "benchmark: expected this field, found none"),
    ],
)
def test_a_line_that_is_no_object_or_lacks_a_field_is_named(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "plans.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=f"line 1: {message}"):
        read_plans(path)


def test_every_field_of_a_plan_is_read_and_none_with_a_default_is_needed() -> None:
    written = json.loads(PLAN.to_json())
    assert written.keys() == {field.name for field in fields(Plan)}
    assert Plan.from_json(PLAN.to_json()) == PLAN
    for field in fields(Plan):
        rest = json.dumps({name: value for name, value in written.items() if name != field.name})
        if field.default is MISSING:
            with pytest.raises(ValueError, match=f"^{field.name}: expected this field, found none"):
                Plan.from_json(rest)
        elif field.name != "ranks":  # the order of this one needs them
            assert getattr(Plan.from_json(rest), field.name) == field.default


def test_plans_of_one_query_under_other_seeds_or_orders_share_a_file(tmp_path: Path) -> None:
    plans = [
        Plan(0, "b", "q", Strategy.random, ("x",)),
        Plan(1, "b", "q", Strategy.random, ("x",)),
        Plan(0, "b", "q", Strategy.rices, ("x",)),
        Plan(0, "b", "q", Strategy.random, ("x",), order=Order.shuffled),
    ]
    write_plans(plans, tmp_path / "plans.jsonl")
    assert read_plans(tmp_path / "plans.jsonl") == plans
