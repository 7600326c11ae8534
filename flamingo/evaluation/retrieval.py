"""Exact cosine search: the nearest items of an index of up to millions, within bounded memory.

For unit vectors the cosine similarity is the inner product. It is computed in fp32 in blocks of the
index (each read once) by blocks of queries, and only the best few of each query are kept. Blocks of
another shape may round a product differently, and the same vector at two places too. The result
must not depend on any of that, as plans are made of it, so:

- Equal vectors are stored and compared once; which items share one is remembered.
- A query keeps every vector whose fp32 product is within the error bound ``dim * 2^-23`` of being
  among its nearest (Higham 2002, section 3.1: twice the bound for any order of summation).
- Those few are scored again in fp64 and rounded to fp32. Equal scores go to the lower index.

So the neighbours of a query are a pure function of its vector and the index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flamingo.evaluation.retrieval_blocks import BlockFinder

ROWS_AT_ONCE = 8192
SLACK = 16
"""Candidates beyond those asked for, before a search has to be repeated with more."""


def normalize(
    features: Float[Tensor, "item dim"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "item dim"]:
    """Rows of length one, rounded to ``dtype``.

    Raises ``ValueError`` naming the row for one that is zero or not finite: it has no direction.
    """
    result = torch.empty(features.shape, dtype=dtype)
    for start in range(0, len(features), ROWS_AT_ONCE):
        rows = features[start : start + ROWS_AT_ONCE].to("cpu", torch.float64)
        length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        bad = ~(torch.isfinite(length) & (length > 0)).flatten()
        if bad.any():
            row = start + int(bad.int().argmax())
            raise ValueError(
                f"features: expected finite vectors other than zero, got one of length "
                f"{length[row - start].item()} in row {row}"
            )
        result[start : start + len(rows)] = rows / length
    return result


def mix(
    first: Float[Tensor, "item first"],
    second: Float[Tensor, "item second"],
    weight: float,
) -> Float[Tensor, "item both"]:
    """Vectors whose cosine is ``weight * cos(first) + (1 - weight) * cos(second)``.

    Unit vectors scaled by the square roots of their weights, side by side. Raises ``ValueError``
    for a weight outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight: expected a number of [0, 1], got {weight}")
    return torch.cat([weight**0.5 * normalize(first), (1 - weight) ** 0.5 * normalize(second)], 1)


@dataclass(frozen=True)
class Index:
    """Unit vectors to search in, each different one once, and which items have it.

    ``vectors`` are on the CPU in the dtype of storage (fp16 and bf16 take half the memory; what is
    compared are the rounded vectors); ``owner[i]`` is the row of item ``i``'s vector.
    """

    vectors: Float[Tensor, "row dim"]
    owner: Int[Tensor, " item"]

    @classmethod
    def build(
        cls, features: Float[Tensor, "item dim"], storage: torch.dtype = torch.float32
    ) -> Index:
        """The index of ``features``, which need not be of unit length.

        Raises ``ValueError`` for no items, and for a vector without direction.
        """
        if not len(features):
            raise ValueError("features: expected at least one item, got none")
        vectors = normalize(features, storage)
        rows: dict[bytes, int] = {}
        first: list[int] = []
        owner = torch.empty(len(vectors), dtype=torch.int64)
        for item, content in enumerate(vectors.view(torch.uint8).numpy()):
            digest = hashlib.blake2b(content.data, digest_size=16).digest()
            row = rows.setdefault(digest, len(rows))
            if row == len(first):
                first.append(item)
            owner[item] = row
        return cls(vectors if len(first) == len(vectors) else vectors[first], owner)

    def __len__(self) -> int:
        return len(self.owner)

    @cached_property
    def _members(self) -> tuple[list[int], list[int]]:
        """Items sorted by row (then by index), and where each row's begin."""
        counts = torch.bincount(self.owner, minlength=len(self.vectors))
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return self.owner.argsort(stable=True).tolist(), starts.tolist()

    def members(self, row: int) -> Sequence[int]:
        """The items that have vector ``row``, in ascending order."""
        items, starts = self._members
        return items[starts[row] : starts[row + 1]]

    def similarities(
        self, query: Float[Tensor, " dim"], items: Sequence[int]
    ) -> Float[Tensor, " item"]:
        """Cosine of ``query`` with each of ``items``: computed in fp64, rounded to fp32."""
        rows = self.owner[list(items)]
        return exact_scores(self.vectors, normalize(query[None]), rows[None])[0]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest items of each query, the nearest first.

    Where a query has fewer than were asked for, -1 and minus infinity follow.
    """

    items: Int[Tensor, "query count"]
    scores: Float[Tensor, "query count"]

    def of(self, query: int) -> list[int]:
        """The neighbours of one query, without what follows them."""
        return [item for item in self.items[query].tolist() if item >= 0]


@runtime_checkable
class Finder(Protocol):
    """Finds candidates by inner product; ``exact`` says whether it misses none.

    Gives the ``count`` best rows of each query (fp32 products in descending order and rows) without
    the pairs (query, row) in ``hidden``; minus infinity where there are fewer.
    """

    @property
    def exact(self) -> bool: ...

    def __call__(
        self,
        queries: Float[Tensor, "query dim"],
        count: int,
        hidden: Int[Tensor, "pair two"],
    ) -> tuple[Float[Tensor, "query count"], Int[Tensor, "query count"]]: ...


def search(
    index: Index,
    queries: Float[Tensor, "query dim"],
    count: int,
    excluded: Sequence[Collection[int]] | None = None,
    finder: Finder | None = None,
) -> Neighbours:
    """The ``count`` items nearest to each query by cosine, without those it ``excluded``.

    ``excluded`` holds the indices of items, one collection a query. Equal similarities (as fp32) go
    to the lower index. ``finder``: by default :class:`BlockFinder` on the CPU. Raises
    ``ValueError`` if dimensions or lengths do not fit.
    """
    if queries.shape[1] != index.vectors.shape[1]:
        raise ValueError(
            f"queries: expected vectors of {index.vectors.shape[1]} as in the index, "
            f"got {queries.shape[1]}"
        )
    excluded = [frozenset()] * len(queries) if excluded is None else excluded
    if len(excluded) != len(queries):
        raise ValueError(
            f"excluded: expected one collection for each of {len(queries)} queries, "
            f"got {len(excluded)}"
        )
    queries = normalize(queries)
    items = torch.full((len(queries), count), -1)
    scores = torch.full((len(queries), count), -torch.inf)
    for query, found in _candidates(
        index, queries, count, excluded, finder or BlockFinder(index.vectors)
    ):
        best = list(islice(_expanded(index, found, excluded[query], count), count))
        if best:
            items[query, : len(best)] = torch.tensor([item for _, item in best])
            scores[query, : len(best)] = torch.tensor([score for score, _ in best])
    return Neighbours(items, scores)


Scored = list[tuple[float, int]]


def _candidates(
    index: Index,
    queries: Float[Tensor, "query dim"],
    count: int,
    excluded: Sequence[Collection[int]],
    finder: Finder,
) -> Iterator[tuple[int, Scored]]:
    """Each query with (exact score, row) of enough rows to hold its ``count`` nearest items."""
    total, dim = index.vectors.shape
    bound = dim * torch.finfo(torch.float32).eps
    # Each row that is not hidden has an item to show: as many rows as items are always enough.
    needed = min(count, total)
    todo = torch.arange(len(queries) if needed else 0)
    hidden = _hidden(index, excluded)
    slack = SLACK
    while len(todo):
        width = min(needed + slack, total)
        own = hidden[torch.isin(hidden[:, 0], todo)]
        places = torch.searchsorted(todo, own[:, 0].contiguous())
        own = torch.stack([places, own[:, 1]], dim=1)
        products, rows = finder(queries[todo], width, own)
        last = products[:, -1]
        done = (last < products[:, needed - 1] - 2 * bound) | last.isneginf()
        if width == total or not finder.exact:
            done = torch.ones_like(done)
        scored = _scored(index.vectors, queries[todo[done]], products[done], rows[done])
        yield from zip(todo[done].tolist(), scored, strict=True)
        todo = todo[~done]
        slack *= 8


def _hidden(index: Index, excluded: Sequence[Collection[int]]) -> Int[Tensor, "pair two"]:
    """Pairs (query, row) of rows all of whose items the query excludes, queries ascending."""
    pairs = []
    for query, own in enumerate(excluded):
        items = sorted(own)
        for row in sorted(set(index.owner[items].tolist())) if items else []:
            if all(member in own for member in index.members(row)):
                pairs.append((query, row))
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def _scored(
    vectors: Float[Tensor, "row dim"],
    queries: Float[Tensor, "query dim"],
    products: Float[Tensor, "query candidate"],
    rows: Int[Tensor, "query candidate"],
) -> Iterator[Scored]:
    at_once = max(1, 2**22 // max(1, rows.shape[1] * vectors.shape[1]))
    for start in range(0, len(queries), at_once):
        part = slice(start, start + at_once)
        found = ~products[part].isneginf()
        exact = exact_scores(vectors, queries[part], rows[part].clamp(min=0))
        for own, names, seen in zip(exact, rows[part], found, strict=True):
            yield sorted(
                zip(own[seen].tolist(), names[seen].tolist(), strict=True),
                key=lambda pair: -pair[0],
            )


def exact_scores(
    vectors: Float[Tensor, "row dim"],
    queries: Float[Tensor, "query dim"],
    rows: Int[Tensor, "query candidate"],
) -> Float[Tensor, "query candidate"]:
    """Products of each query with its ``rows`` of ``vectors``: in fp64, rounded to fp32."""
    return (vectors[rows].double() * queries.double()[:, None]).sum(dim=-1).float()


def _expanded(
    index: Index, found: Scored, excluded: Collection[int], count: int
) -> Iterator[tuple[float, int]]:
    """(score, item) of the rows ``found``, best score first, equal scores by index."""
    for score, group in groupby(found, key=lambda pair: pair[0]):
        items: list[int] = []
        for _, row in group:
            allowed = (item for item in index.members(row) if item not in excluded)
            items += islice(allowed, count)
        yield from ((score, item) for item in sorted(items))
