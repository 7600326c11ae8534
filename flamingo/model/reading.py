"""How text reads media: attention of text tokens to the latents of the media each may see.

Which media those are is worked out once a call and used by every gated block; what is right is
defined by :func:`flamingo.model.masking.media_mask`. Where a token sees one medium alone
(immediate), this is the mask's fast form, and a test holds the two against each other: tokens are
brought together by the medium they read, and each medium is read by its own tokens only. No token
is compared with a medium that a mask would hide again, and a prompt's beams read it side by side.
Where a token sees all media before it, the mask over all of a prompt's latents says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flamingo.model.attention import attend

KeysValues = Float[Tensor, "two medium head latent dim_head"]
"""Keys, then values, of media one after the other."""


@dataclass(frozen=True, eq=False)
class OwnMedium:
    """Each token reads one medium, or none."""

    media: Int[Tensor, " read"] | None
    """The media that are read at all; None: every one, in order."""
    readers: Int[Tensor, "read reader"]
    """The tokens that read each, counted through all rows; padded with token 0."""
    place: Int[Tensor, "text_row token"]
    """Where each token stands in ``readers``, counted through all rows of it."""
    sees: Bool[Tensor, "text_row token"] | None
    """Tokens that see a medium; None: all of them."""

    @classmethod
    def of(cls, medium: Int[Tensor, "text_row token"], media: int) -> OwnMedium:
        """From the number of each token's medium among ``media`` (-1: it sees none)."""
        flat = medium.flatten()
        sees = flat >= 0
        own = torch.where(sees, flat, media)  # those that see none: readers of one more, the last
        rank, counts = _rank_among_readers(own, media + 1)
        sizes = counts[:-1].tolist()
        longest, read = max(sizes, default=0), [i for i, size in enumerate(sizes) if size]
        chosen, row = None, own
        if len(read) < media:
            chosen = torch.tensor(read, dtype=torch.long, device=own.device)
            row = _row_of_medium(chosen, media + 1)[own]
        place = torch.where(sees, row * longest + rank, 0)
        readers = torch.zeros(len(read) * longest, dtype=torch.long, device=own.device)
        tokens = torch.arange(len(own), device=own.device)
        if sum(sizes) < len(own):
            readers[place[sees]] = tokens[sees]
        else:
            readers[place] = tokens
            sees = None
        return cls(
            chosen,
            readers.unflatten(0, (len(read), longest)),
            place.view_as(medium),
            None if sees is None else sees.view_as(medium),
        )

    def attend(
        self, query: Float[Tensor, "text_row token head dim_head"], media: KeysValues
    ) -> Float[Tensor, "text_row token head dim_head"]:
        """What each token gets from the medium it sees; zeros for one that sees none."""
        if self.readers.numel() == 0:
            return torch.zeros_like(query)
        media = media if self.media is None else media.index_select(1, self.media)
        key, value = media.to(query.dtype)
        gathered = query.flatten(0, 1).index_select(0, self.readers.flatten())
        gathered = rearrange(gathered, "(m r) h d -> m h r d", m=len(self.readers))
        out = rearrange(attend(gathered, key, value), "m h r d -> (m r) h d")
        out = out.index_select(0, self.place.flatten()).view_as(query)
        return out if self.sees is None else out.masked_fill(~self.sees[:, :, None, None], 0)


def _rank_among_readers(
    medium: Int[Tensor, " token"], media: int
) -> tuple[Int[Tensor, " token"], Int[Tensor, " medium"]]:
    """Each token's place among those that read its medium, and how many read each medium."""
    order = medium.argsort(stable=True)
    counts = torch.zeros(media, dtype=torch.long, device=medium.device)
    counts.scatter_add_(0, medium, torch.ones_like(medium))
    first = counts.cumsum(0) - counts
    place = torch.empty_like(medium)
    place[order] = torch.arange(len(medium), device=medium.device)
    return place - first[medium], counts


def _row_of_medium(read: Int[Tensor, " read"], media: int) -> Int[Tensor, " medium"]:
    """Where each medium stands among those that are ``read``; 0 for the others."""
    row = torch.zeros(media, dtype=torch.long, device=read.device)
    row[read] = torch.arange(len(read), device=read.device)
    return row


@dataclass(frozen=True, eq=False)
class AllMedia:
    """Each token reads any of its prompt's media that a mask shows it."""

    media: Int[Tensor, "row medium"]
    """The media of each prompt, padded with medium 0."""
    mask: Bool[Tensor, "text_row token medium"]

    def attend(
        self, query: Float[Tensor, "text_row token head dim_head"], media: KeysValues
    ) -> Float[Tensor, "text_row token head dim_head"]:
        """What each token gets from the media it sees; zeros for one that sees none."""
        rows, latents = len(self.media), media.shape[3]
        key, value = rearrange(media.to(query.dtype)[:, self.media], "k b m h l d -> k b h (m l) d")
        # Beams of one prompt share its media: their tokens are queries of one row, no copies.
        gathered = rearrange(query, "(b g) t h d -> b h (g t) d", b=rows)
        mask = rearrange(self.mask, "(b g) t m -> b 1 (g t) m", b=rows)
        out = attend(gathered, key, value, mask.repeat_interleave(latents, dim=-1))
        return rearrange(out, "b h (g t) d -> (b g) t h d", t=query.shape[1])


Reading = OwnMedium | AllMedia
"""Who reads what in one call."""
