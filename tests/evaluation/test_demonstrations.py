"""Plans are pure and nested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flamingo.choices import Strategy
from flamingo.evaluation.demonstrations import (
    Plan,
    plan_balanced,
    plan_random,
    read_plans,
    write_plans,
)

POOL = [f"train/{i}" for i in range(50)]
CLASSES = [[f"{name}/{i}" for i in range(6)] for name in ("cat", "dog", "owl")]
LITERAL_RANDOM = ("train/19", "train/10", "train/39", "train/5")
LITERAL_BALANCED = ("dog/2", "owl/3", "cat/1", "dog/3", "cat/4", "owl/1")


def test_a_plan_has_the_literal_demonstrations_it_always_had() -> None:
    plan = plan_random(0, "easy_vqa", "test/17", POOL, 4)
    assert plan.demonstrations == LITERAL_RANDOM
    balanced = plan_balanced(0, "binding", "3", CLASSES, 2)
    assert balanced.demonstrations == LITERAL_BALANCED


def test_fewer_shots_are_the_last_of_more_whatever_the_longest_is() -> None:
    longest = plan_random(0, "easy_vqa", "test/17", POOL, 32)
    for shots in (0, 1, 2, 4, 8, 16, 32):
        alone = plan_random(0, "easy_vqa", "test/17", POOL, shots)
        assert alone.demonstrations == longest.last(shots)
        assert alone.demonstrations == longest.demonstrations[32 - shots :]


def test_fewer_rounds_are_the_last_of_more_and_each_has_every_class_once() -> None:
    longest = plan_balanced(1, "binding", "q", CLASSES, 6)
    assert sorted(longest.demonstrations) == sorted(name for names in CLASSES for name in names)
    for rounds in range(7):
        shorter = plan_balanced(1, "binding", "q", CLASSES, rounds)
        assert shorter.demonstrations == longest.last(3 * rounds)
    for start in range(0, 18, 3):
        classes = [d.split("/")[0] for d in longest.demonstrations[start : start + 3]]
        assert sorted(classes) == ["cat", "dog", "owl"]


@pytest.mark.parametrize("change", ["seed", "benchmark", "query"])
def test_seed_benchmark_and_query_each_change_the_plan(change: str) -> None:
    arguments = {"seed": 0, "benchmark": "a", "query": "q"}
    other = arguments | {change: 1 if change == "seed" else "other"}
    first = plan_random(**arguments, pool=POOL, longest=8)
    assert plan_random(**other, pool=POOL, longest=8).demonstrations != first.demonstrations


def test_demonstrations_are_different_and_cover_the_pool_evenly() -> None:
    counts = dict.fromkeys(POOL, 0)
    for query in range(500):
        plan = plan_random(0, "b", str(query), POOL, 10)
        assert len(set(plan.demonstrations)) == 10
        for name in plan.demonstrations:
            counts[name] += 1
    # Binomial(500, 10 / 50): mean 100, standard deviation 8.9.
    assert min(counts.values()) > 100 - 5 * 8.9
    assert max(counts.values()) < 100 + 5 * 8.9


def test_a_plan_does_not_depend_on_the_process() -> None:
    code = (
        "from flamingo.evaluation.demonstrations import plan_random\n"
        "print(plan_random(0, 'easy_vqa', 'test/17', "
        "[f'train/{i}' for i in range(50)], 4).demonstrations)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.strip() == str(plan_random(0, "easy_vqa", "test/17", POOL, 4).demonstrations)


def test_plans_survive_writing_and_reading(tmp_path: Path) -> None:
    plans = [
        plan_random(0, "b", "test/1", POOL, 3),
        plan_balanced(2, "ünïcode", "q 2", CLASSES, 2),
    ]
    write_plans(plans, tmp_path / "plans.jsonl")
    assert read_plans(tmp_path / "plans.jsonl") == plans


def test_too_many_shots_are_an_error_that_says_how_many_there_are() -> None:
    with pytest.raises(ValueError, match="at most the 50 demonstrations of b, got 51"):
        plan_random(0, "b", "q", POOL, 51)
    with pytest.raises(ValueError, match="at most 6 a class in query 'q' of b"):
        plan_balanced(0, "b", "q", CLASSES, 7)
    with pytest.raises(ValueError, match="between 0 and 2"):
        Plan(0, "b", "q", Strategy.random, ("a", "b")).last(3)
