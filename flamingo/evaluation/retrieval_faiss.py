"""Candidates from faiss (Douze et al. 2024, arXiv:2401.08281), for those who ask for it.

``pip install -e '.[faiss]'``. The candidates are scored again like any others, so an exact
factory (``"Flat"``) gives the same neighbours as the search in torch, and an approximate one
(``"HNSW32"``, ``"IVF1024,Flat"``) may miss some but ranks those it finds alike.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flamingo.evaluation.retrieval import ROWS_AT_ONCE, Index


def load_faiss() -> Any:
    """The faiss module. Raises ``ValueError`` saying how to install it if it is missing."""
    try:
        import faiss  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise ValueError(
            "retrieval backend: expected the package faiss (pip install -e '.[faiss]'), "
            "got none installed; the search in torch needs no extra"
        ) from error
    return faiss


class FaissFinder:
    """A :class:`flamingo.evaluation.retrieval.Finder` over an inner-product index of faiss.

    ``factory`` is faiss's own description of an index; one that needs training is trained on the
    vectors it holds. Building some approximate indexes (HNSW) with several threads is not
    deterministic in faiss, and neither is then a plan made of them. Raises ``ValueError`` if faiss
    is missing or refuses the factory.
    """

    def __init__(self, index: Index, factory: str = "Flat") -> None:
        faiss = load_faiss()
        self.exact = factory == "Flat"
        dim = index.vectors.shape[1]
        try:
            self._faiss = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ValueError(
                f"factory: expected a description of an index of faiss, got {factory!r}"
            ) from error
        if not self._faiss.is_trained:
            self._faiss.train(index.vectors.float().numpy())
        for block in index.vectors.split(ROWS_AT_ONCE):
            self._faiss.add(block.float().numpy())

    def __call__(
        self,
        queries: Float[Tensor, "query dim"],
        count: int,
        hidden: Int[Tensor, "pair two"],
    ) -> tuple[Float[Tensor, "query count"], Int[Tensor, "query count"]]:
        # faiss knows no exclusions of a query's own: ask for as many more as any query hides.
        most = int(hidden[:, 0].bincount().max()) if len(hidden) else 0
        found = self._faiss.search(queries.numpy(), min(count + most, self._faiss.ntotal))
        products, rows = (torch.from_numpy(array) for array in found)
        products = products.masked_fill(rows < 0, -torch.inf)
        total = self._faiss.ntotal
        pairs = torch.arange(len(queries))[:, None] * total + rows
        unseen = torch.isin(pairs, hidden[:, 0] * total + hidden[:, 1]) & (rows >= 0)
        products = products.masked_fill(unseen, -torch.inf)
        products, order = products.sort(dim=1, descending=True, stable=True)
        return products[:, :count], rows.gather(1, order)[:, :count]
