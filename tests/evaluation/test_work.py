"""Who predicts what, and in which order."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from flamingo.choices import Condition
from flamingo.evaluation import work
from flamingo.evaluation.cells import Cell, PromptLengths, plan_cells
from flamingo.evaluation.work import in_order, missing_places, share_out
from flamingo.evaluation_config import EvaluationConfig

from . import tiny

LENGTHS = PromptLengths(tiny.tokenizer())


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    benchmarks = [tiny.binding(queries=9, seeds=(0, 1)), tiny.binding(ways=3, queries=7)]
    planned, left_out = plan_cells(
        benchmarks, EvaluationConfig(), LENGTHS, model_id="m", precision="float32"
    )
    assert not left_out
    return planned


def query(cell: Cell, place: int) -> tuple[str, str]:
    return cell.benchmark.name, cell.episodes[place].query.id


def everything(cells: list[Cell]) -> list[list[int]]:
    return missing_places(cells, lambda cell: ())


@pytest.mark.parametrize("count", [1, 2, 3, 5, 50])
def test_each_missing_episode_belongs_to_exactly_one_process(cells, count: int) -> None:
    missing = [own[::2] for own in everything(cells)]
    shares = share_out(cells, missing, LENGTHS, count)
    assert len(shares) == count
    for index, own in enumerate(missing):
        assert sorted(place for share in shares for place in share[index]) == own


def test_all_prompts_of_a_query_are_read_by_one_process(cells) -> None:
    owners: dict[tuple[str, str], set[int]] = {}
    for process, share in enumerate(share_out(cells, everything(cells), LENGTHS, 3)):
        for cell, own in zip(cells, share, strict=True):
            for place in own:
                owners.setdefault(query(cell, place), set()).add(process)
    assert len(owners) == 9 + 7
    assert all(len(own) == 1 for own in owners.values())


@pytest.mark.parametrize("count", [2, 3])
def test_the_processes_read_about_as_many_tokens(cells, count: int) -> None:
    missing = everything(cells)
    costs: Counter[tuple[str, str]] = Counter()
    loads = []
    for share in share_out(cells, missing, LENGTHS, count):
        own: Counter[tuple[str, str]] = Counter()
        for cell, places in zip(cells, share, strict=True):
            for place in places:
                tokens = LENGTHS(cell.episodes[place], cell.benchmark.task.template)
                own[query(cell, place)] += tokens
        loads.append(own.total())
        costs += own
    assert max(loads) - min(loads) <= max(costs.values())


def test_a_prompt_s_length_is_that_of_its_ids(cells) -> None:
    from flamingo.data.sequence import tokenize
    from flamingo.evaluation.prompts import prompt

    for cell in cells:
        sequence = prompt(cell.episodes[0], cell.benchmark.task.template)
        expected = len(tokenize(sequence, tiny.tokenizer(), 10**6).input_ids)
        assert LENGTHS(cell.episodes[0], cell.benchmark.task.template) == expected


def cell(benchmark: str, shots: int, queries: str) -> Cell:
    episodes = [SimpleNamespace(query=SimpleNamespace(id=name)) for name in queries]
    named = SimpleNamespace(name=benchmark)
    keys = [f"{shots}{name}" for name in queries]
    # Only names and ids are looked at.
    made = object.__new__(Cell)
    values = {"benchmark": named, "shots": shots, "seed": 0, "condition": Condition.real}
    for name, value in (values | {"episodes": episodes, "keys": keys}).items():
        object.__setattr__(made, name, value)
    return made


def test_a_few_queries_are_read_at_every_shot_count_before_the_next(monkeypatch) -> None:
    monkeypatch.setattr(work, "QUERIES_AT_ONCE", 2)
    cells = [cell("a", 0, "pqrst"), cell("a", 8, "pqrst"), cell("b", 0, "xyz")]
    order = [
        (own.benchmark.name, own.shots, "".join(own.episodes[i].query.id for i in places))
        for own, places in in_order(cells, [[0, 1, 2, 4], [1, 2, 3], [0, 2]])
    ]
    assert order == [
        ("a", 0, "pq"),
        ("a", 8, "q"),
        ("a", 0, "rt"),
        ("a", 8, "r"),
        ("a", 8, "s"),
        ("b", 0, "xz"),
    ]


def test_equal_prompts_are_predicted_once() -> None:
    cells = [cell("a", 0, "pqr"), cell("a", 0, "qrs"), cell("b", 0, "q")]
    assert missing_places(cells, lambda own: {"0p"}) == [[1, 2], [2], [0]]
