"""The search finds exactly what the full product would, in whatever blocks."""

from __future__ import annotations

import builtins
import random

import pytest
import torch

from flamingo.evaluation.retrieval import Index, mix, normalize, search
from flamingo.evaluation.retrieval_blocks import BlockFinder
from flamingo.evaluation.retrieval_faiss import FaissFinder, load_faiss


def brute_force(
    vectors: torch.Tensor, queries: torch.Tensor, count: int, excluded=None
) -> tuple[list[list[int]], list[list[float]]]:
    """The full product in fp64, rounded to fp32, sorted by score and then by index."""
    scores = (normalize(queries).double() @ vectors.double().T).float()
    items, values = [], []
    for query, row in enumerate(scores.tolist()):
        hidden = set() if excluded is None else set(excluded[query])
        order = sorted((i for i in range(len(row)) if i not in hidden), key=lambda i: (-row[i], i))
        items.append(order[:count])
        values.append([row[i] for i in order[:count]])
    return items, values


def features(items: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(items, dim, generator=torch.Generator().manual_seed(seed))


def test_a_literal_search() -> None:
    index = Index.build(torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 5.0], [-1.0, 0.0], [3.0, 3.0]]))
    found = search(index, torch.tensor([[10.0, 0.0], [0.0, 0.1]]), 3)
    assert found.items.tolist() == [[0, 1, 4], [2, 1, 4]]  # 1 and 4 are one direction
    assert found.scores[0].tolist() == pytest.approx([1, 0.5**0.5, 0.5**0.5], abs=1e-7)
    assert found.scores[0, 1] == found.scores[0, 2]


@pytest.mark.parametrize("storage", [torch.float32, torch.float16, torch.bfloat16])
def test_a_hundred_thousand_items_in_blocks_equal_the_full_product(storage: torch.dtype) -> None:
    index = Index.build(features(100_000, 16), storage)
    assert index.vectors.dtype is storage
    queries = features(6, 16, seed=1)
    finder = BlockFinder(index.vectors, item_block=7_001, query_block=4)
    found = search(index, queries, 32, finder=finder)
    everything = index.vectors[index.owner].double()
    scores, items = (
        (normalize(queries).double() @ everything.T)
        .float()
        .sort(dim=1, descending=True, stable=True)
    )
    assert torch.equal(found.items, items[:, :32])
    assert torch.equal(found.scores, scores[:, :32])


@pytest.mark.parametrize("blocks", [(1, 1), (3, 2), (50, 50), (1000, 1000)])
def test_ties_go_to_the_lower_index_in_any_blocks(blocks: tuple[int, int]) -> None:
    """A few directions, each many times: nearly every score is a tie."""
    few = features(7, 5)
    places = random.Random(0).choices(range(7), k=200)
    scales = 1 + torch.rand(200, 1, generator=torch.Generator().manual_seed(2)).round(decimals=1)
    index = Index.build(torch.cat([few[places], (few[places] * 2.0), few[places] * scales]))
    excluded = [set(range(q, 600, 3)) for q in range(5)]
    queries = torch.cat([few[:3], features(2, 5, seed=3)])
    finder = BlockFinder(index.vectors, item_block=blocks[0], query_block=blocks[1])
    found = search(index, queries, 40, excluded, finder)
    items, scores = brute_force(index.vectors[index.owner], queries, 40, excluded)
    assert found.items.tolist() == items
    assert found.scores.tolist() == scores


def test_more_near_ties_than_the_slack_are_still_sorted_out() -> None:
    """A thousand vectors whose products differ by less than what fp32 can tell."""
    base = features(1, 64)
    noise = 1e-7 * features(1000, 64, seed=1)
    index = Index.build(base + noise)
    assert len(index.vectors) > 500
    queries = base + 0.1 * features(3, 64, seed=2)
    found = search(index, queries, 4)
    assert found.items.tolist() == brute_force(index.vectors[index.owner], queries, 4)[0]


def test_a_query_finds_the_same_alone_as_among_others() -> None:
    index = Index.build(features(3000, 48), torch.float16)
    queries = features(40, 48, seed=1)
    together = search(index, queries, 10)
    for query in (0, 17, 39):
        alone = search(index, queries[query : query + 1], 10)
        assert torch.equal(alone.items[0], together.items[query])
        assert torch.equal(alone.scores[0], together.scores[query])
    backwards = search(index, queries.flip(0), 10)
    assert torch.equal(backwards.items.flip(0), together.items)
    fewer = search(index, queries, 3)
    assert torch.equal(fewer.items, together.items[:, :3])


def test_excluded_items_are_never_found_even_if_nothing_else_is_left() -> None:
    vectors = features(10, 4)[[0, 0, 1, 1, 2, 3, 4, 5, 6, 7]]
    index = Index.build(vectors)
    excluded = [set(range(10)), {0}, {0, 1}, set(), set(range(8))]
    queries = vectors[[0, 0, 0, 0, 0]]
    found = search(index, queries, 4, excluded)
    expected = brute_force(index.vectors[index.owner], queries, 4, excluded)[0]
    assert [found.of(query) for query in range(5)] == expected
    assert found.of(0) == []
    assert found.of(1)[0] == 1
    assert set(found.of(4)) == {8, 9}
    assert found.items[4].tolist()[2:] == [-1, -1]
    assert found.scores[4].tolist()[2:] == [-torch.inf, -torch.inf]


def test_many_excluded_items_leave_room_for_those_behind_them() -> None:
    index = Index.build(features(200, 8))
    queries = features(3, 8, seed=1)
    nearest = brute_force(index.vectors, queries, 200)[0]
    excluded = [set(nearest[0][:150]), set(), set(nearest[2][:80])]
    found = search(index, queries, 5, excluded, BlockFinder(index.vectors, item_block=64))
    assert found.items.tolist() == [nearest[0][150:155], nearest[1][:5], nearest[2][80:85]]


def test_more_neighbours_than_items_and_none_at_all() -> None:
    index = Index.build(features(3, 4))
    assert sorted(search(index, features(1, 4), 5).of(0)) == [0, 1, 2]
    assert search(index, features(2, 4), 0).items.shape == (2, 0)
    assert search(index, features(0, 4), 2).items.shape == (0, 2)


def test_the_cosine_of_a_mixture_is_the_weighted_sum_of_cosines() -> None:
    image, text = features(30, 6), features(30, 9, seed=1)
    both = Index.build(mix(image, text, 0.3))
    found = both.similarities(mix(image, text, 0.3)[4], list(range(30)))
    own = 0.3 * torch.cosine_similarity(image[4][None], image) + 0.7 * torch.cosine_similarity(
        text[4][None], text
    )
    torch.testing.assert_close(found, own, atol=1e-6, rtol=0.0)
    with pytest.raises(ValueError, match=r"weight: expected a number of \[0, 1\], got 1.5"):
        mix(image, text, 1.5)


def test_what_has_no_direction_or_does_not_fit_is_named() -> None:
    zero = features(5, 4)
    zero[3] = 0
    with pytest.raises(ValueError, match=r"other than zero, got one of length 0.0 in row 3"):
        Index.build(zero)
    zero[3, 0] = torch.nan
    with pytest.raises(ValueError, match="length nan in row 3"):
        Index.build(zero)
    with pytest.raises(ValueError, match="at least one item"):
        Index.build(features(0, 4))
    index = Index.build(features(5, 4))
    with pytest.raises(ValueError, match="vectors of 4 as in the index, got 3"):
        search(index, features(1, 3), 1)
    with pytest.raises(ValueError, match="each of 2 queries, got 1"):
        search(index, features(2, 4), 1, [set()])


def test_speed_settings_of_the_process_do_not_reach_the_search(monkeypatch) -> None:
    original = torch.Tensor.__matmul__
    seen = []

    def matmul(self, other):
        seen.append(torch.get_float32_matmul_precision())
        return original(self, other)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        monkeypatch.setattr(torch.Tensor, "__matmul__", matmul)
        search(Index.build(features(20, 4)), features(2, 4, seed=1), 2)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}


# ---------------------------------------------------------------------------- faiss


@pytest.mark.parametrize(
    ("factory", "least"),
    [("Flat", 1.0), ("HNSW16", 0.9), ("IVF2,Flat", 0.6)],  # the last is trained
)
def test_faiss_finds_the_same_as_torch(factory: str, least: float) -> None:
    pytest.importorskip("faiss", reason="needs faiss: make install")
    index = Index.build(features(500, 16)[random.Random(0).choices(range(500), k=900)])
    queries = features(20, 16, seed=1)
    excluded = [set(range(q, 900, 7)) for q in range(20)]
    torch_found = search(index, queries, 12, excluded)
    found = search(index, queries, 12, excluded, FaissFinder(index, factory))
    for own, hidden in zip(found.items.tolist(), excluded, strict=True):
        assert len(set(own)) == 12 and not hidden & set(own)
    agree = (found.items[:, :, None] == torch_found.items[:, None]).any(dim=2).float().mean()
    assert agree >= least
    if factory == "Flat":
        assert torch.equal(torch_found.items, found.items)
        assert torch.equal(torch_found.scores, found.scores)


def test_faiss_gives_the_nearest_of_those_a_query_does_not_hide() -> None:
    pytest.importorskip("faiss", reason="needs faiss: make install")
    index = Index.build(features(60, 8))
    queries = normalize(features(3, 8, seed=1))
    products = queries @ index.vectors.T
    nearest = products.argsort(dim=1, descending=True)
    # The 20 nearest; none; all but the two farthest.
    hidden = [(query, row) for query, n in ((0, 20), (2, 58)) for row in nearest[query, :n]]
    found, rows = FaissFinder(index)(queries, 5, torch.tensor(hidden))
    assert rows[0].tolist() == nearest[0, 20:25].tolist()
    assert rows[1].tolist() == nearest[1, :5].tolist()
    assert rows[2, :2].tolist() == nearest[2, 58:].tolist()
    assert found[2].isneginf().tolist() == [False, False, True, True, True]
    assert torch.allclose(found[:2], products.gather(1, rows)[:2])


def test_what_is_no_index_of_faiss_is_refused() -> None:
    pytest.importorskip("faiss", reason="needs faiss: make install")
    index = Index.build(features(5, 4))
    with pytest.raises(ValueError, match="factory: .* got 'nonsense'"):
        FaissFinder(index, "nonsense")


def test_without_faiss_the_error_says_how_to_install_it(monkeypatch) -> None:
    original = builtins.__import__

    def missing(name, *arguments, **options):
        if name == "faiss":
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"pip install -e '.\[faiss\]'"):
        load_faiss()
