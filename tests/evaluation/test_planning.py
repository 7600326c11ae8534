"""Whatever the strategy: plans are pure, nested, and never show the query's image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flamingo.choices import Exclusion, Order, Strategy
from flamingo.evaluation.planning import PlanSettings, Similar, make_plans
from flamingo.evaluation.plans import Plan, read_plans, write_plans
from flamingo.evaluation.pool import Listing
from flamingo.evaluation.retrieval import Index
from flamingo.evaluation.retrieval_blocks import BlockFinder
from flamingo.evaluation_config import DemonstrationsConfig

ITEMS, QUERIES, LONGEST = 120, 15, 8
POOL = Listing(
    [f"train/{i}" for i in range(ITEMS)],
    [(f"image/{i // 3}",) for i in range(ITEMS)],  # three questions an image
    [("red", "green", "blue", "red", "red")[i % 5] for i in range(ITEMS)],
)
ASKED = Listing(
    [f"test/{i}" for i in range(QUERIES)],
    [(f"image/{i % 10}",) for i in range(QUERIES)],  # the pool's first ten images
    [""] * QUERIES,
)


def random_features(items: int, seed: int) -> torch.Tensor:
    return torch.randn(items, 12, generator=torch.Generator().manual_seed(seed))


IMAGE_VECTORS = random_features(ITEMS // 3, 0)
SIMILAR = Similar(
    Index.build(IMAGE_VECTORS[[i // 3 for i in range(ITEMS)]], torch.float16),
    IMAGE_VECTORS[[i % 10 for i in range(QUERIES)]] + 0.1 * random_features(QUERIES, 1),
    "image mean abc",
)
STRATEGIES = [s for s in Strategy if s is not Strategy.balanced]


def settings(strategy: Strategy, longest: int = LONGEST, seed: int = 0, **options) -> PlanSettings:
    fixed = [POOL.ids[i] for i in range(3, 60, 4)] if strategy is Strategy.fixed else []
    config = {"strategy": strategy, "fixed": fixed, "candidates": 30, **options}
    return PlanSettings(config=DemonstrationsConfig(**config), seed=seed, longest=longest)


def plans(own: PlanSettings, places=range(QUERIES), finder=None) -> dict[str, Plan]:
    """The plans of the queries at ``places``."""
    places = list(places)
    asked = Listing(
        [ASKED.ids[i] for i in places],
        [ASKED.images[i] for i in places],
        [ASKED.labels[i] for i in places],
    )
    similar = replace(SIMILAR, vectors=SIMILAR.vectors[places])
    made = make_plans(own, "b", asked, POOL, similar, finder)
    return {plan.query: plan for plan in made}


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_plan_depends_on_no_other_query_and_on_no_block(strategy: Strategy, order: Order) -> None:
    own = settings(strategy, order=order)
    together = plans(own)
    assert list(together) == list(ASKED.ids)
    assert plans(own, reversed(range(QUERIES))) == together
    for place in range(QUERIES):
        assert plans(own, [place])[ASKED.ids[place]] == together[ASKED.ids[place]]
    finder = BlockFinder(SIMILAR.index.vectors, item_block=7, query_block=4)
    assert plans(own, finder=finder) == together


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_set_of_k_shots_is_the_last_k_of_any_longer_plan(
    strategy: Strategy, order: Order
) -> None:
    longest = plans(settings(strategy, order=order))
    for shots in (0, 1, 3, 7):
        shorter = plans(settings(strategy, order=order, longest=shots))
        for query, plan in shorter.items():
            assert plan.demonstrations == longest[query].last(shots)
            assert plan.presented(shots) == longest[query].presented(shots)
            assert len(plan.demonstrations) == shots


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_demonstration_shows_the_image_of_its_query(strategy: Strategy) -> None:
    for place, plan in enumerate(plans(settings(strategy)).values()):
        (image,) = ASKED.images[place]
        shown = {POOL.images[POOL.place[name]][0] for name in plan.demonstrations}
        assert image not in shown
        assert len(plan.demonstrations) == LONGEST
        assert plan.exclusion is Exclusion.same_image


def test_without_exclusion_rices_shows_the_same_image_but_never_the_query_itself() -> None:
    own = settings(Strategy.rices, exclusion=Exclusion.nothing)
    for place, plan in enumerate(plans(own).values()):
        shown = [POOL.images[POOL.place[name]] for name in plan.demonstrations]
        assert shown[-1] == ASKED.images[place]
    inside = Listing(POOL.ids[:4], POOL.images[:4], POOL.labels[:4])
    similar = replace(SIMILAR, vectors=IMAGE_VECTORS[[0, 0, 0, 1]])
    made = make_plans(own, "b", inside, POOL, similar)
    assert made[0].demonstrations[-2:] == ("train/2", "train/1")
    assert made[1].demonstrations[-2:] == ("train/2", "train/0")
    assert all(plan.query not in plan.demonstrations for plan in made)


def test_excluding_changes_only_plans_that_would_have_shown_the_image() -> None:
    free = plans(settings(Strategy.random, exclusion=Exclusion.nothing))
    safe = plans(settings(Strategy.random))
    images = {q: ASKED.images[i][0] for i, q in enumerate(ASKED.ids)}
    hit = {
        q
        for q, plan in free.items()
        if images[q] in {POOL.images[POOL.place[d]][0] for d in plan.demonstrations}
    }
    assert hit, "no query of the test would have seen its own image"
    assert {q for q in free if free[q].demonstrations != safe[q].demonstrations} == hit


def test_labels_are_balanced_at_every_number_of_shots() -> None:
    for plan in plans(settings(Strategy.label_balanced)).values():
        for shots in range(LONGEST + 1):
            labels = [POOL.labels[POOL.place[name]] for name in plan.last(shots)]
            counts = [labels.count(label) for label in ("red", "green", "blue")]
            assert max(counts) - min(counts) <= 1


def test_a_label_that_runs_out_is_named() -> None:
    pool = Listing(["a", "b", "c"], [("i",), ("j",), ("k",)], ["yes", "yes", "no"])
    asked = Listing(["q"], [("z",)], [""])
    own = settings(Strategy.label_balanced, longest=3)
    with pytest.raises(ValueError, match="label 'no' to have .* got 1 for 3 shots of 2 labels"):
        for seed in range(8):  # the odd one of three shots may have either label
            make_plans(replace(own, seed=seed), "b", asked, pool)
    hidden = Listing(["q"], [("k",)], [""])
    (plan,) = make_plans(replace(own, longest=2), "b", hidden, pool)
    assert sorted(plan.demonstrations) == ["a", "b"], "a label that is excluded whole is no label"
    with pytest.raises(ValueError, match="all of b is excluded for query 'q', got 1"):
        asked = Listing(["q"], [("i", "j", "k")], [""])
        make_plans(replace(own, longest=1), "b", asked, pool)


def test_fixed_demonstrations_are_those_the_user_listed_and_move_up_for_an_excluded_one() -> None:
    own = settings(Strategy.fixed, fixed=["train/90", "train/4", "train/99"], longest=2)
    made = plans(own)
    assert made["test/0"].demonstrations == ("train/4", "train/99")
    assert made["test/1"].demonstrations == ("train/90", "train/99")  # train/4 shows image/1
    with pytest.raises(ValueError, match="3 fixed demonstrations less 1 excluded for query"):
        plans(replace(own, longest=3))
    with pytest.raises(ValueError, match="pool of b, such as 'train/0', got 'train/x'"):
        plans(settings(Strategy.fixed, fixed=["train/x"], longest=2))
    with pytest.raises(ValueError, match="expected each once, got 'train/4' twice"):
        plans(settings(Strategy.fixed, fixed=["train/4", "train/4"], longest=2), [0])


def test_plans_say_what_they_were_made_of_and_survive_the_disk(tmp_path: Path) -> None:
    made = plans(settings(Strategy.diverse, order=Order.similar_last, seed=4, order_seed=2))
    plan = made["test/0"]
    assert plan.parameters == (
        ("features", "image mean abc"),
        ("relevance", 0.5),
        ("candidates", 30),
    )
    assert (plan.seed, plan.order, plan.order_seed) == (4, Order.similar_last, 2)
    assert plans(settings(Strategy.random))["test/0"].parameters == ()
    write_plans(made.values(), tmp_path / "plans.jsonl")
    again = read_plans(
        tmp_path / "plans.jsonl", benchmark="b", queries=set(ASKED.ids), pool=POOL.place
    )
    assert again == list(made.values())


@pytest.mark.parametrize("strategy", [Strategy.random, Strategy.label_balanced])
def test_seeds_draw_anew_and_the_order_seed_only_orders(strategy: Strategy) -> None:
    first = plans(settings(strategy, order=Order.shuffled))
    other = plans(settings(strategy, order=Order.shuffled, seed=1))
    order = plans(settings(strategy, order=Order.shuffled, order_seed=1))
    for query, plan in first.items():
        assert set(other[query].demonstrations) != set(plan.demonstrations)
        assert order[query].demonstrations == plan.demonstrations
        assert sorted(order[query].presented(8)) == sorted(plan.presented(8))
    assert any(order[q].presented(8) != p.presented(8) for q, p in first.items())


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="fixed: expected ids with strategy=fixed and only then"):
        DemonstrationsConfig(strategy=Strategy.fixed)
    with pytest.raises(ValueError, match="fixed: expected ids"):
        DemonstrationsConfig(fixed=["a"])
    with pytest.raises(ValueError, match="strategy: expected another"):
        DemonstrationsConfig(strategy=Strategy.balanced)
    with pytest.raises(ValueError, match="relevance"):
        DemonstrationsConfig(relevance=-0.1)
    with pytest.raises(ValueError, match="candidates: expected at least .* 9 demonstr.*, got 8"):
        settings(Strategy.diverse, candidates=8, longest=9)
    with pytest.raises(ValueError, match="longest: expected >= 0, got -1"):
        settings(Strategy.random, longest=-1)
    for own in (settings(Strategy.rices), settings(Strategy.random, order=Order.similar_first)):
        with pytest.raises(ValueError, match="similar: expected retrieval features"):
            make_plans(own, "b", ASKED, POOL)
    with pytest.raises(ValueError, match="similar.vectors: expected one for each of 15 items"):
        few = replace(SIMILAR, vectors=SIMILAR.vectors[:3])
        make_plans(settings(Strategy.rices), "b", ASKED, POOL, few)
    with pytest.raises(ValueError, match="at most the 117 demonstrations of b that can be shown"):
        plans(settings(Strategy.rices, longest=118))
    with pytest.raises(ValueError, match="at most the 120 demonstrations of b less 3 excluded"):
        plans(settings(Strategy.random, longest=118))
