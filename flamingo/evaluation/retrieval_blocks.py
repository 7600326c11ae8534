"""Candidates of a search by matrix products, in blocks, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class BlockFinder:
    """Exact candidates by matrix products in blocks.

    At any time at most ``item_block * dim + 2 * query_block * item_block`` fp32 numbers are held
    besides the index and the candidates: 150 MB by default at 1,280 channels.
    ``device`` computes; blocks of the index are moved there one after the other.
    """

    vectors: Float[Tensor, "row dim"]
    device: torch.device | str = "cpu"
    item_block: int = 2**14
    query_block: int = 512
    exact: bool = True

    def __call__(
        self,
        queries: Float[Tensor, "query dim"],
        count: int,
        hidden: Int[Tensor, "pair two"],
    ) -> tuple[Float[Tensor, "query count"], Int[Tensor, "query count"]]:
        queries, hidden = queries.to(self.device), hidden.to(self.device)
        best = torch.full((len(queries), count), -torch.inf, device=self.device)
        rows = torch.full((len(queries), count), -1, device=self.device)
        with _full_precision():
            for start in range(0, len(self.vectors), self.item_block):
                block = self.vectors[start : start + self.item_block]
                block = block.to(self.device, torch.float32)
                inside = (hidden[:, 1] >= start) & (hidden[:, 1] < start + len(block))
                own = hidden[inside] - torch.tensor([0, start], device=self.device)
                for first in range(0, len(queries), self.query_block):
                    part = slice(first, first + self.query_block)
                    products = queries[part] @ block.T
                    here = own[(own[:, 0] >= first) & (own[:, 0] < first + self.query_block)]
                    products[here[:, 0] - first, here[:, 1]] = -torch.inf
                    top, place = products.topk(min(count, len(block)), dim=1)
                    top = torch.cat([best[part], top], dim=1)
                    place = torch.cat([rows[part], place + start], dim=1)
                    best[part], chosen = top.topk(count, dim=1)
                    rows[part] = place.gather(1, chosen)
        return best.cpu(), rows.cpu()


@contextmanager
def _full_precision() -> Iterator[None]:
    """fp32 products in fp32, whatever TF32 or bf16 the process allows for speed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
