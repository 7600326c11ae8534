"""Latents of media, resampled once each and reused in every prompt that shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.types import Media, MediaLoader

Key = tuple[str, ...]


def media_key(medium: Media) -> Key:
    """The keys of a medium's frames."""
    return tuple(frame.key for frame in medium.frames)


class MediaLatents:
    """``encode_media`` of each distinct medium, kept on the CPU until it is forgotten.

    Computed in the precision of the resampler's weights, outside autocast: what is rounded
    differently with the size of a batch would enter every prompt.
    """

    def __init__(
        self,
        model: FlamingoForConditionalGeneration,
        load_media: MediaLoader,
        batch_size: int = 64,
    ) -> None:
        self._model = model
        self._load = load_media
        self._batch_size = batch_size
        self._latents: dict[Key, Float[Tensor, "latent dim"]] = {}

    @torch.no_grad()
    def prepare(self, media: Iterable[Media]) -> None:
        """Load and resample those of ``media`` that are not there yet."""
        missing = {
            key: medium for medium in media if (key := media_key(medium)) not in self._latents
        }
        keys = list(missing)
        parameter = next(self._model.resampler.parameters())
        for start in range(0, len(keys), self._batch_size):
            part = keys[start : start + self._batch_size]
            loaded = self._load([missing[key] for key in part])[None]
            loaded = loaded.to(parameter.device, parameter.dtype)
            if loaded.ndim == 6:
                latents = self._model.encode_media(pixel_values=loaded)
            else:
                latents = self._model.encode_media(vision_features=loaded)
            self._latents.update(zip(part, latents[0].cpu(), strict=True))

    def rows(self, rows: Sequence[Sequence[Media]]) -> Float[Tensor, "batch image latent dim"]:
        """The latents of each row's media, zeros behind a row's last (a row may have none)."""
        first = next(medium for row in rows for medium in row)
        none = self._latents[media_key(first)].new_zeros(0, *self._latents[media_key(first)].shape)
        own = [torch.stack([self._latents[media_key(m)] for m in row]) if row else none
               for row in rows]  # fmt: skip
        return torch.nn.utils.rnn.pad_sequence(own, batch_first=True)

    def __len__(self) -> int:
        return len(self._latents)

    def forget(self) -> None:
        """Free everything (between benchmarks)."""
        self._latents.clear()
