"""The media that text is attending to: projected once per block, kept as explicit state.

A :class:`MediaState` says, for each row of prompts, which media it has (their keys and values for
every gated block, their media time) and how many ``<image>`` tokens were read so far. It is an
immutable value: appending media or dropping those that no later token can see gives a new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache

from flamingo.choices import MediaVisibility
from flamingo.model.cross_attention import GatedCrossAttentionBlock
from flamingo.model.masking import media_mask
from flamingo.model.reading import AllMedia, KeysValues, OwnMedium, Reading


@dataclass(frozen=True, eq=False)
class ProjectedMedia:
    """Media as the gated blocks read them, worked out beforehand (``project_media``)."""

    keys_values: Mapping[int, KeysValues]
    """By decoder layer; media of all rows, one after the other."""
    counts: tuple[int, ...]
    """Media of each row."""

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[Mapping[int, KeysValues]]]) -> ProjectedMedia:
        """From each row's media, each projected alone; at least one in all."""
        media = [medium for row in rows for medium in row]
        together = {i: torch.cat([medium[i] for medium in media], dim=1) for i in media[0]}
        return cls(together, tuple(len(row) for row in rows))


@dataclass(frozen=True, eq=False)
class MediaState:
    """Media of a batch of prompts as the gated blocks read them.

    Media stand one after the other, whichever prompt they belong to: prompts with fewer have no
    padding. There are as many *prompts* as entries in ``available``, and as many rows of text, or
    a multiple of it (the beams of each prompt, side by side).
    """

    keys_values: Mapping[int, KeysValues]
    """By decoder layer. Empty while no row has a medium."""
    row: Int[Tensor, " medium"]
    """The prompt of each medium."""
    time: Int[Tensor, " medium"]
    """Its media time: 1, 2, ... within its prompt."""
    available: Int[Tensor, " row"]
    """Media that each prompt was given so far, dropped ones included."""
    seen: Int[Tensor, " text_row"]
    """``<image>`` tokens read so far."""
    width: int = 0
    """No media time is above it."""

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> MediaState:
        none = torch.zeros(0, dtype=torch.long, device=device)
        zeros = torch.zeros(rows, dtype=torch.long, device=device)
        return cls({}, none, none, available=zeros, seen=zeros)

    @classmethod
    def so_far(cls, cache: FlamingoCache | None, input_ids: Int[Tensor, "row token"]) -> MediaState:
        """The media in ``cache``; where nothing is, none for each row of ``input_ids``."""
        if cache is not None and cache.media is not None:
            return cache.media
        return cls.empty(len(input_ids), input_ids.device)

    @property
    def beams(self) -> int:
        """Rows of text that share each prompt's media."""
        return len(self.seen) // len(self.available)

    @property
    def available_by_text_row(self) -> Int[Tensor, " text_row"]:
        """As ``available``, repeated for the beams of each prompt."""
        return self.available.repeat_interleave(self.beams)

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
        present: Bool[Tensor, "given_row image"],
        blocks: Mapping[int, GatedCrossAttentionBlock],
    ) -> MediaState:
        """Add media: ``latents`` of the real ones in reading order, ``present`` marks them.

        They are the prompts' or, where ``present`` has more rows, each text row's own (or that of
        a few side by side): then a prompt's beams share media no longer.
        """
        if len(latents) == 0:
            return self
        added = {index: block.project_media(latents) for index, block in blocks.items()}
        return self._append(added, present.sum(dim=1), present.shape[1])

    def append_projected(self, media: ProjectedMedia) -> MediaState:
        """Add media that were projected before, wherever they are."""
        device = self.seen.device
        added = {index: kv.to(device) for index, kv in media.keys_values.items()}
        return self._append(added, torch.tensor(media.counts, device=device), max(media.counts))

    def _append(
        self, added: Mapping[int, KeysValues], counts: Int[Tensor, " given_row"], width: int
    ) -> MediaState:
        if len(counts) != len(self.available):
            return self._apart(len(counts))._append(added, counts, width)
        media = next(iter(added.values())).shape[1]
        rows = torch.arange(len(counts), device=counts.device)
        new_row = rows.repeat_interleave(counts, output_size=media)
        first = counts.cumsum(0) - counts
        place = torch.arange(media, device=counts.device) - first[new_row]
        keys_values = dict(added)
        if self.keys_values:
            keys_values = {
                index: torch.cat([self.keys_values[index], new], dim=1)
                for index, new in added.items()
            }
        return MediaState(
            keys_values,
            torch.cat([self.row, new_row]),
            torch.cat([self.time, place + 1 + self.available[new_row]]),
            available=self.available + counts,
            seen=self.seen,
            width=self.width + width,
        )

    def after(
        self, images_read: Int[Tensor, " text_row"], visibility: MediaVisibility
    ) -> MediaState:
        """The state behind a chunk of text. Immediate mode keeps each prompt's current medium and
        those not yet read: nothing before them is ever seen again."""
        seen = self.seen + images_read
        state = replace(self, seen=seen)
        # Not more media than prompts: one each, in the common case, and nothing to drop.
        if visibility is MediaVisibility.all_previous or len(self.row) <= len(self.available):
            return state
        current = seen[:: self.beams]
        kept = (self.time >= current[self.row]).nonzero()[:, 0]
        return state if len(kept) == len(self.row) else state._with(kept, self.row[kept])

    def reading(
        self,
        time: Int[Tensor, "text_row token"],
        visibility: MediaVisibility,
        before: Int[Tensor, "text_row token"] | None = None,
    ) -> Reading | None:
        """Who reads what, for tokens at these text times; None without any media.

        ``before``: media of earlier documents of the row, which a token does not see.
        """
        if not self.keys_values:
            return None
        rows, media = len(self.available), len(self.row)
        # A table of all media by prompt and time; the column of time 0 is nobody's.
        table = torch.full((rows, self.width + 1), -1, device=self.row.device)
        table[self.row, self.time] = torch.arange(media, device=self.row.device)
        if visibility is MediaVisibility.immediate:
            prompt = torch.arange(len(time), device=time.device) // self.beams
            own = table[prompt[:, None], time]
            if before is not None:
                own = torch.where(time > before, own, -1)
            return OwnMedium.of(own, media)
        times = torch.arange(self.width + 1, device=time.device).expand(rows, -1)
        times = torch.where(table >= 0, times, 0).repeat_interleave(self.beams, dim=0)
        return AllMedia(table.clamp(min=0), media_mask(time, times, visibility, before))

    def select(self, rows: Int[Tensor, " selected"]) -> MediaState:
        """The state for a selection of its text rows (reordered beams, a part of a batch)."""
        prompts = rows // self.beams
        if len(rows) == len(self.seen) and bool(
            (prompts == torch.arange(len(rows), device=rows.device) // self.beams).all()
        ):
            return replace(self, seen=self.seen[rows])  # beams changed places within their prompts
        return self._of_prompts(prompts, seen=self.seen[rows])

    def _apart(self, rows: int) -> MediaState:
        """The same text rows as beams of more prompts, each with a copy of its prompt's media.

        Raises ``ValueError`` unless ``rows`` is a multiple of the prompts that divides the text
        rows.
        """
        prompts, texts = len(self.available), len(self.seen)
        if rows % prompts or texts % rows:
            raise ValueError(
                f"media: expected as many rows as the cache has prompts ({prompts}) or text rows "
                f"({texts}), got {rows}"
            )
        each = torch.arange(rows, device=self.seen.device) // (rows // prompts)
        return self._of_prompts(each, seen=self.seen)

    def _of_prompts(
        self, prompts: Int[Tensor, " selected"], seen: Int[Tensor, " text_row"]
    ) -> MediaState:
        """A prompt for each of ``prompts``, with its media; ``seen`` of their text rows."""
        row, medium = (self.row[None, :] == prompts[:, None]).nonzero().unbind(dim=1)
        state = replace(self, available=self.available[prompts], seen=seen)
        return state._with(medium, row)

    def _with(self, media: Int[Tensor, " chosen"], row: Int[Tensor, " chosen"]) -> MediaState:
        """Only these media, now of these prompts."""
        return replace(
            self,
            keys_values={index: kv[:, media] for index, kv in self.keys_values.items()},
            row=row,
            time=self.time[media],
        )


def check_media_counts(named: Int[Tensor, " row"], given: Int[Tensor, " row"]) -> None:
    """Raise ``ValueError`` for the first row that names more media than it was given."""
    short = named > given
    if bool(short.any()):
        row = int(short.int().argmax())
        raise ValueError(
            f"row {row}: expected a medium for each of its {int(named[row])} <image> tokens, "
            f"got {int(given[row])} media"
        )


def check_projected(
    projected: ProjectedMedia, named: Int[Tensor, " row"], others: Sequence[Tensor | None]
) -> None:
    """Raise ``ValueError`` unless ``projected`` are exactly the media that rows name, and all."""
    if any(other is not None for other in others):
        raise ValueError("projected_media: expected no other form of media beside it, got one")
    counts = named.tolist()
    if counts != list(projected.counts):
        raise ValueError(
            f"projected_media: expected {counts} media, as many as the rows have <image> tokens, "
            f"got {list(projected.counts)}"
        )


def checked_cache(cache: Cache | None) -> FlamingoCache | None:
    """The cache of an earlier call. Raises ``ValueError`` for one that holds no media."""
    if cache is None or isinstance(cache, FlamingoCache):
        return cache
    raise ValueError(
        "past_key_values: expected a FlamingoCache (it keeps the media being read), got "
        f"{type(cache).__name__}"
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
