"""The media that text is attending to: projected once per block, kept as explicit state.

A :class:`MediaState` says, for each row of prompts, which media it has (their keys and values for
every gated block, their media time) and how many ``<image>`` tokens were read so far. It is an
immutable value: appending media or dropping those that no later token can see gives a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache

from flamingo.choices import MediaVisibility
from flamingo.model.cross_attention import GatedCrossAttentionBlock
from flamingo.model.masking import media_mask, media_time

KeysValues = Float[Tensor, "two row head medium latent dim_head"]


@dataclass(frozen=True, eq=False)
class MediaState:
    """Media of a batch of prompts as the gated blocks read them."""

    keys_values: Mapping[int, KeysValues]
    """By decoder layer. Empty while no row has a medium."""
    time: Int[Tensor, "row medium"]
    """Media time; 0 is padding."""
    seen: Int[Tensor, " text_row"]
    """``<image>`` tokens read so far."""

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> MediaState:
        return cls(
            {},
            torch.zeros(rows, 0, dtype=torch.long, device=device),
            torch.zeros(rows, dtype=torch.long, device=device),
        )

    @property
    def available(self) -> Int[Tensor, " row"]:
        """Media each row has been given, dropped ones included."""
        given = F.pad(self.time, (1, 0)).amax(dim=1)
        return torch.maximum(given, self.seen[:: len(self.seen) // len(self.time)])

    @property
    def available_by_text_row(self) -> Int[Tensor, " text_row"]:
        """As ``available``, repeated for the beams of each prompt."""
        return self.available.repeat_interleave(len(self.seen) // len(self.time))

    def for_text_rows(self, rows: int) -> MediaState:
        """The state for ``rows`` text rows: each prompt's beams, side by side, share its media.

        Raises ``ValueError`` unless ``rows`` is a multiple of the prompts.
        """
        if rows == len(self.seen):
            return self
        if rows % len(self.seen):
            raise ValueError(
                f"input_ids: expected a multiple of the cache's {len(self.seen)} rows, got {rows}"
            )
        return replace(self, seen=self.seen.repeat_interleave(rows // len(self.seen)))

    def append(
        self,
        latents: Float[Tensor, "medium latent dim"],
        present: Bool[Tensor, "row image"],
        blocks: Mapping[int, GatedCrossAttentionBlock],
    ) -> MediaState:
        """Add media: ``latents`` of the real ones in reading order, ``present`` marks them."""
        if len(latents) == 0:
            return self
        counts = present.sum(dim=1)
        new_time = media_time(counts, present.shape[1])
        new_time = torch.where(new_time > 0, new_time + self.available[:, None], 0)
        keys_values = {}
        for index, block in blocks.items():
            flat = block.project_media(latents)
            padded = _to_rows(flat, present)
            added = rearrange(
                padded, "b m l (two h d) -> two b h m l d", two=2, h=block.attention.heads
            )
            old = self.keys_values.get(index)
            keys_values[index] = added if old is None else torch.cat([old, added], dim=3)
        return replace(self, keys_values=keys_values, time=torch.cat([self.time, new_time], dim=1))

    def after(
        self, images_read: Int[Tensor, " text_row"], visibility: MediaVisibility
    ) -> MediaState:
        """The state behind a chunk of text. Immediate mode keeps each row's current medium and
        those not yet read: nothing before them is ever seen again."""
        seen = self.seen + images_read
        if visibility is MediaVisibility.all_previous or self.time.shape[1] <= 1:
            return replace(self, seen=seen)
        current = seen[:: len(seen) // len(self.time)]
        if not bool((self.time.amax(dim=1) <= current).all()):
            return replace(self, seen=seen)
        last = self.time.argmax(dim=1)
        rows = torch.arange(len(last), device=last.device)
        kept = {
            index: rearrange(kv[:, rows, :, last], "b two h l d -> two b h 1 l d")
            for index, kv in self.keys_values.items()
        }
        return MediaState(kept, self.time[rows, last][:, None], seen)

    def mask(
        self, time: Int[Tensor, "text_row token"], visibility: MediaVisibility
    ) -> Bool[Tensor, "text_row token key"] | None:
        """The mask over all latents of all media, for tokens at these text times."""
        if not self.keys_values:
            return None
        beams = len(time) // len(self.time)
        mask = media_mask(time, self.time.repeat_interleave(beams, dim=0), visibility)
        latents = next(iter(self.keys_values.values())).shape[4]
        return repeat(mask, "b t m -> b t (m l)", l=latents)

    def by_layer(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys and values for each block, latents of all media in a row side by side."""
        flat = {
            i: rearrange(kv, "two b h m l d -> two b h (m l) d")
            for i, kv in self.keys_values.items()
        }
        return {index: (kv[0], kv[1]) for index, kv in flat.items()}

    def select(self, rows: Int[Tensor, " selected"]) -> MediaState:
        """The state for a selection of its text rows (reordered beams, a part of a batch)."""
        beams = len(self.seen) // len(self.time)
        if len(rows) == len(self.seen) and bool(
            (rows // beams == torch.arange(len(rows), device=rows.device) // beams).all()
        ):
            return replace(self, seen=self.seen[rows])  # beams changed places within their prompts
        prompts = rows // beams
        return MediaState(
            {index: kv[:, prompts] for index, kv in self.keys_values.items()},
            self.time[prompts],
            self.seen[rows],
        )


def _to_rows(
    flat: Float[Tensor, "medium latent dim"], present: Bool[Tensor, "row image"]
) -> Float[Tensor, "row image latent dim"]:
    """Real media back to their places; padding gets copies of the first, which the mask hides."""
    if bool(present.all()):
        return flat.unflatten(0, tuple(present.shape))
    place = torch.where(present.flatten(), present.flatten().cumsum(0) - 1, 0)
    return flat[place].unflatten(0, tuple(present.shape))


def check_media_counts(named: Int[Tensor, " row"], given: Int[Tensor, " row"]) -> None:
    """Raise ``ValueError`` for the first row that names more media than it was given."""
    short = named > given
    if bool(short.any()):
        row = int(short.int().argmax())
        raise ValueError(
            f"row {row}: expected a medium for each of its {int(named[row])} <image> tokens, "
            f"got {int(given[row])} media"
        )


class FlamingoCache(DynamicCache):
    """transformers' growing key-value cache of the text, and with it the media being read."""

    def __init__(self, config: PreTrainedConfig | None = None) -> None:
        super().__init__(config=config)
        self.media: MediaState | None = None
        self.text_behind: Int[Tensor, ""] | None = None
        """Tokens behind the last ``<image>`` of the row where they are fewest: what may be cropped.
        None while nothing was read."""

    def note(self, is_image: Bool[Tensor, "row token"]) -> None:
        """Take notice of the tokens that a call has read."""
        tokens = is_image.shape[1]
        place = torch.arange(tokens, device=is_image.device)
        last = torch.where(is_image, place, -1).amax()
        known = tokens if self.text_behind is None else self.text_behind + tokens
        self.text_behind = torch.where(last >= 0, tokens - 1 - last, known)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens (a negative number), as assisted generation does.

        Raises ``ValueError`` where an ``<image>`` token is among them: the media it replaced may
        not be kept.
        """
        behind = self.text_behind
        if behind is not None and abs(tokens_to_remove) > int(behind):
            raise ValueError(
                f"tokens_to_remove: expected at most the {int(behind)} tokens behind the last "
                f"<image>, got {abs(tokens_to_remove)}"
            )
        super().crop(tokens_to_remove)
        if behind is not None:
            self.text_behind = behind - abs(tokens_to_remove)

    def reorder_cache(self, beam_idx: Int[Tensor, " selected"]) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        if self.media is not None:
            self.media = self.media.select(beam_idx)

    def batch_select_indices(self, indices: Int[Tensor, " selected"]) -> None:
        super().batch_select_indices(indices)
        if self.media is not None:
            self.media = self.media.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.media is not None:
            self.media = replace(self.media, seen=self.media.seen.repeat_interleave(repeats))

    def reset(self) -> None:
        super().reset()
        self.media = None
        self.text_behind = None
