"""The rows of the new tokens, apart from the frozen vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def check_new_token_ids(token_ids: Sequence[int], vocabulary: int, **special: int | None) -> None:
    """Raise ``ValueError`` unless every id means the column of the logits that it will get.

    ``token_ids`` must increase, and those at or above ``vocabulary`` (the LM's own rows) follow it
    without a gap; ``special`` ids (by the field that names them) up there must be among them.
    """
    given = list(token_ids)
    beyond = [token for token in given if token >= vocabulary]
    behind = list(range(vocabulary, vocabulary + len(beyond)))
    if given != sorted(set(given)) or beyond != behind or any(token < 0 for token in given):
        raise ValueError(
            "new_token_ids: expected increasing ids, those beyond the language model's "
            f"{vocabulary} rows {behind}, got {given}"
        )
    for name, token in special.items():
        if token is not None and token >= vocabulary and token not in beyond:
            raise ValueError(
                f"{name}: expected one of new_token_ids {given}, or an id below the language "
                f"model's {vocabulary} rows, got {token}"
            )


class NewTokenEmbedding(nn.Module):
    """A small table for the new tokens ("decoupled embedding", after IDEFICS).

    The frozen matrix is never written to, and no gradient or optimizer state of the size of the
    vocabulary exists. With an untied head the new tokens have output rows of their own.
    """

    token_ids: Tensor

    def __init__(self, token_ids: Sequence[int], dim: int, *, tied: bool) -> None:
        super().__init__()
        self.register_buffer(
            "token_ids", torch.tensor(list(token_ids), dtype=torch.long), persistent=False
        )
        self.input = nn.Parameter(torch.zeros(len(token_ids), dim))
        self.output = None if tied else nn.Parameter(torch.zeros(len(token_ids), dim))

    @torch.no_grad()
    def initialize_from(
        self,
        frozen_input: Float[Tensor, "vocabulary dim"],
        frozen_output: Float[Tensor, "vocabulary dim"],
        patterns: Sequence[int | None],
    ) -> None:
        """Start each row as the frozen row of a token with a like role, and a little noise.

        A frozen LM knows what to do behind its own begin and end tokens; random rows of the same
        spread cost several times the training (LOG.md). Without a pattern a row is drawn around
        the mean of all, with their spread per channel.
        """
        for rows, frozen in ((self.input, frozen_input), (self.output, frozen_output)):
            if rows is None:
                continue
            spread = frozen.float().std(dim=0)
            for row, pattern in zip(rows, patterns, strict=True):
                # Drawn here, whatever device a language model (a quantised one, say) is on.
                noise = spread * torch.randn(row.shape).to(spread)
                if pattern is None:
                    row.copy_(frozen.float().mean(dim=0) + noise)
                else:
                    row.copy_(frozen[pattern].float() + 0.02 * noise)

    @property
    def output_rows(self) -> Float[Tensor, "new dim"]:
        return self.input if self.output is None else self.output

    def forward(
        self, input_ids: Int[Tensor, "row token"], frozen: nn.Module
    ) -> Float[Tensor, "row token dim"]:
        """Embeddings of ``input_ids``: ours for the new tokens, ``frozen``'s for all others.

        Ours are rows of the same kind as ``frozen.weight``'s, scaled as ``frozen`` scales its own.
        """
        if len(self.token_ids) == 0:
            return frozen(input_ids)
        matches = input_ids[:, :, None] == self.token_ids
        is_new = matches.any(dim=-1)
        own = frozen(torch.where(is_new, 0, input_ids))
        new = self.input[matches.int().argmax(dim=-1)].to(own.dtype)
        # What the family's embedding does to its rows: Gemma's multiplies by sqrt(dim), rounded to
        # the weights' dtype. Embeddings that leave them alone have no such attribute.
        scale = getattr(frozen, "embed_scale", 1.0)
        new = new * (scale.to(new) if isinstance(scale, Tensor) else scale)
        return torch.where(is_new[:, :, None], new, own)

    def join_logits(
        self,
        own: Float[Tensor, "*shape vocabulary"],
        new: Float[Tensor, "*shape new"],
    ) -> Float[Tensor, "*shape all"]:
        """New ids inside the LM's vocabulary replace their columns, those beyond it follow."""
        vocabulary = own.shape[-1]
        inside = self.token_ids < vocabulary
        if bool(inside.any()):
            own = own.index_copy(-1, self.token_ids[inside], new[..., inside])
            new = new[..., ~inside]
        return torch.cat([own, new], dim=-1)
