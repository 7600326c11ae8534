"""Literal choices by similarity, checked by hand and by brute force."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from flamingo.choices import Order, Strategy
from flamingo.evaluation.plans import Plan
from flamingo.evaluation.pool import Listing
from flamingo.evaluation.retrieval import Index, normalize, search
from flamingo.evaluation.similarity import mmr, plan_diverse, plan_rices, with_order

NAMES = ["east", "northeast", "north", "east too", "west", "a bit north of east"]
VECTORS = torch.tensor([[1, 0], [1, 1], [0, 1], [2, 0], [-1, 0], [10, 1]], dtype=torch.float32)
POOL = Listing(NAMES, [()] * 6, [""] * 6)
QUERY = torch.tensor([[3.0, 0.0]])


def test_rices_puts_the_most_similar_last() -> None:
    nearest = search(Index.build(VECTORS), QUERY, 6).of(0)
    plan = plan_rices(0, "b", "q", POOL, nearest, 6)
    assert plan.demonstrations == (
        "west",
        "north",
        "northeast",
        "a bit north of east",
        "east too",  # as similar as east, but later in the pool
        "east",
    )
    assert plan.strategy is Strategy.rices
    for shots in range(7):
        assert plan_rices(0, "b", "q", POOL, nearest, shots).demonstrations == plan.last(shots)
    with pytest.raises(ValueError, match="at most the 6 demonstrations of b .* query 'q', got 7"):
        plan_rices(0, "b", "q", POOL, nearest, 7)


def test_a_literal_diverse_choice() -> None:
    """relevance 1/2: score - closest, times 1/2.

    First east (1). Then north (0 - 0 = 0), northeast (0.707 - 0.707 = 0), a bit north (0.995 -
    0.995 = 0), east too (1 - 1 = 0), west (-1 + 1 = 0) are all equal for a query that is the first
    choice itself, so a query slightly north is used: cosines below are to (2, 1).
    """
    query = torch.tensor([[2.0, 1.0]])
    index = Index.build(VECTORS)
    found = search(index, query, 6)
    nearest = found.of(0)
    assert [NAMES[i] for i in nearest] == [
        "northeast",  # 0.9487
        "a bit north of east",  # 0.9345
        "east",  # 0.8944
        "east too",  # 0.8944
        "north",  # 0.4472
        "west",  # -0.8944
    ]
    # Second choice: a bit north 0.9345 - 0.7740 = 0.1605, east 0.8944 - 0.7071 = 0.1873,
    # north 0.4472 - 0.7071 < 0, west -0.8944 + 0.7071 < 0: east (east too is listed later).
    # Third: a bit north 0.9345 - 0.9950 = -0.0605, east too 0.8944 - 1 = -0.1056,
    # north 0.4472 - 0.7071 = -0.2599, west -0.8944 + 0.7071 = -0.1873: a bit north.
    plan = plan_diverse(0, "b", "q", POOL, nearest, found.scores[0], index, 3, 0.5)
    assert plan.demonstrations == ("a bit north of east", "east", "northeast")
    assert plan.strategy is Strategy.diverse


def brute_force_mmr(scores, cosines, count, relevance) -> list[int]:
    chosen: list[int] = []
    for _ in range(count):
        best, gain = -1, -math.inf
        for i in range(len(scores)):
            if i not in chosen:
                closest = max((cosines[i][c] for c in chosen), default=0.0)
                own = relevance * scores[i] - (1 - relevance) * closest
                if own > gain:
                    best, gain = i, own
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("relevance", [0.0, 0.3, 0.7, 1.0])
def test_mmr_is_what_brute_force_finds_and_nested(relevance: float) -> None:
    vectors = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    scores = torch.randn(40, generator=torch.Generator().manual_seed(1)).sort(descending=True)[0]
    unit = normalize(vectors).double()
    cosines = (unit @ unit.T).float().double().tolist()
    expected = brute_force_mmr(scores.double().tolist(), cosines, 12, relevance)
    assert mmr(scores, vectors, 12, relevance) == expected
    for count in range(12):
        assert mmr(scores, vectors, count, relevance) == expected[:count]
    if relevance == 1:
        assert expected == list(range(12))


def test_a_diverse_choice_avoids_copies_that_rices_takes() -> None:
    vectors = torch.eye(4)[[0, 0, 0, 1, 2]] + 0.2
    index = Index.build(vectors)
    pool = Listing(list("abcde"), [()] * 5, [""] * 5)
    found = search(index, torch.tensor([[1.0, 0.6, 0.5, 0.0]]), 5)
    rices = plan_rices(0, "b", "q", pool, found.of(0), 3)
    diverse = plan_diverse(0, "b", "q", pool, found.of(0), found.scores[0], index, 3, 0.5)
    assert rices.demonstrations == ("c", "b", "a")
    assert diverse.demonstrations[-1] == "a"
    assert set(diverse.demonstrations) == {"a", "d", "e"}


def test_impossible_choices_are_errors() -> None:
    with pytest.raises(ValueError, match=r"relevance: expected a number of \[0, 1\], got 2.0"):
        mmr(torch.ones(2), torch.eye(2), 1, 2.0)
    with pytest.raises(ValueError, match="at most the 2 candidates, got 3"):
        mmr(torch.ones(2), torch.eye(2), 3, 0.5)


# ---------------------------------------------------------------------------- order


def test_orders_by_similarity_sort_any_plan_and_keep_its_sets() -> None:
    index = Index.build(VECTORS)
    drawn = Plan(0, "b", "q", Strategy.random, ("east too", "west", "northeast", "east"))
    last = with_order(drawn, Order.similar_last, 0, POOL, index, QUERY[0])
    first = with_order(drawn, Order.similar_first, 0, POOL, index, QUERY[0])
    assert last.presented(4) == ("west", "northeast", "east too", "east")
    assert first.presented(4) == ("east", "east too", "northeast", "west")
    assert last.presented(2) == ("northeast", "east")
    assert first.presented(2) == ("east", "northeast")
    for plan in (last, first):
        assert plan.demonstrations == drawn.demonstrations
        assert all(sorted(plan.presented(k)) == sorted(drawn.last(k)) for k in range(5))
        assert Plan.from_json(plan.to_json()) == plan


def test_rices_as_drawn_is_most_similar_last() -> None:
    index = Index.build(VECTORS)
    plan = plan_rices(0, "b", "q", POOL, search(index, QUERY, 6).of(0), 6)
    last = with_order(plan, Order.similar_last, 0, POOL, index, QUERY[0])
    first = with_order(plan, Order.similar_first, 0, POOL, index, QUERY[0])
    for shots in range(7):
        assert last.presented(shots) == plan.last(shots)
        assert first.presented(shots) == plan.last(shots)[::-1]


def test_a_pair_keeps_its_order_at_all_shots_in_every_order() -> None:
    index = Index.build(VECTORS)
    drawn = Plan(0, "b", "q", Strategy.random, tuple(NAMES))
    for order in Order:
        plan = with_order(drawn, order, 3, POOL, index, QUERY[0])
        longest = plan.presented(6)
        for shots in range(2, 7):
            shown = plan.presented(shots)
            for a, b in combinations(shown, 2):
                assert longest.index(a) < longest.index(b)


def test_an_order_by_similarity_needs_features() -> None:
    drawn = Plan(0, "b", "q", Strategy.random, ("east",))
    with pytest.raises(ValueError, match="order: expected retrieval features with similar_last"):
        with_order(drawn, Order.similar_last, 0, POOL)
