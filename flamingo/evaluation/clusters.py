"""Queries by cluster: what statistics draw, flip and add up as a whole.

A cluster is usually an image. Clusters are numbered as they first appear, so that a result depends
on the order of the queries and on nothing else of how clusters are named.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

ROUNDING = 1e-9
"""Relative difference below which two sums are equal but for the order of their terms."""
_CELLS = 2_000_000
"""Random numbers held in memory at once."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """``code``: each query's cluster by number; ``sizes``: queries of each cluster; ``order``: the
    queries of the first cluster, then those of the second, and so on."""

    code: Int[np.ndarray, " query"]
    sizes: Int[np.ndarray, " cluster"]
    order: Int[np.ndarray, " query"]

    @classmethod
    def of(cls, names: Sequence[Hashable]) -> Clusters:
        """From one name a query. Raises ``ValueError`` without queries."""
        if not len(names):
            raise ValueError("clusters: expected at least one query, got none")
        number = {name: index for index, name in enumerate(dict.fromkeys(names))}
        code = np.array([number[name] for name in names])
        return cls(code, np.bincount(code), np.argsort(code, kind="stable"))

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def queries(self) -> int:
        return len(self.code)

    def sums(self, values: Float[np.ndarray, " query"]) -> Float[np.ndarray, " cluster"]:
        """The sum of ``values`` over the queries of each cluster."""
        return np.bincount(self.code, weights=values, minlength=len(self))

    def members(self, drawn: Int[np.ndarray, " draw"]) -> Int[np.ndarray, " member"]:
        """The queries of the ``drawn`` clusters, one cluster after the other, with repeats."""
        starts = np.cumsum(self.sizes) - self.sizes
        sizes = self.sizes[drawn]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.order[np.repeat(starts[drawn], sizes) + within]


def score_array(
    field: str, scores: Sequence[float], clusters: Clusters
) -> Float[np.ndarray, " query"]:
    """``scores`` as an array. Raises ``ValueError`` naming ``field`` unless each query has one."""
    array = np.array(scores, dtype=float)
    if len(array) != clusters.queries:
        raise ValueError(f"{field}: expected {clusters.queries}, one a query, got {len(array)}")
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{field}[{index}]: expected a finite score, got {array[index]}")
    return array


def paired_differences(
    first: Sequence[float], second: Sequence[float], clusters: Clusters
) -> Float[np.ndarray, " query"]:
    """``first - second``, query by query. Raises ``ValueError`` as :func:`score_array` does."""
    return score_array("first", first, clusters) - score_array("second", second, clusters)


def blocks(draws: int, width: int) -> Iterator[int]:
    """``draws`` rows of ``width`` random numbers in parts that fit into memory: rows of each part.

    Raises ``ValueError`` without draws.
    """
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")
    rows = max(1, _CELLS // max(1, width))
    for start in range(0, draws, rows):
        yield min(rows, draws - start)
