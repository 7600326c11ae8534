"""Latents of media, resampled once each and reused in every prompt that shows them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.media import ProjectedMedia
from flamingo.model.reading import KeysValues
from flamingo.types import Media, MediaLoader

Key = tuple[str, ...]

LATENTS_BYTES = 2 * 2**30
"""Latents kept in memory by each process. OpenFlamingo's are 256 KiB a medium in fp32 (64 latents
of 1,024 numbers): 8,192 media."""
PROJECTIONS_BYTES = 2**30
"""Keys and values kept by each process, on the model's device: of SmolLM2-135M with seven blocks
1,170 media in bf16."""


def media_key(medium: Media) -> Key:
    """The keys of a medium's frames."""
    return tuple(frame.key for frame in medium.frames)


class MediaLatents:
    """``encode_media`` of each distinct medium, kept on the CPU.

    At most ``capacity`` bytes are kept: the medium that was not shown for longest is forgotten
    first, and computed anew if it comes back.

    Computed one medium at a time, in the precision of the resampler's weights and outside autocast:
    latents are then the same bits whichever media are asked for together, and with them every
    prompt, whatever the batch size, the number of processes, or what was done before an
    interruption.
    """

    def __init__(
        self,
        model: FlamingoForConditionalGeneration,
        load_media: MediaLoader,
        capacity: int = LATENTS_BYTES,
    ) -> None:
        self._model = model
        self._load = load_media
        self._capacity = capacity
        self._latents: OrderedDict[Key, Float[Tensor, "latent dim"]] = OrderedDict()
        self._bytes = 0
        self._projections: OrderedDict[Key, Mapping[int, KeysValues]] = OrderedDict()

    def prepare(self, media: Iterable[Media]) -> None:
        """Load and resample those of ``media`` that are not there yet."""
        for medium in media:
            self._of(medium)

    def rows(self, rows: Sequence[Sequence[Media]]) -> Float[Tensor, "batch image latent dim"]:
        """The latents of each row's media, zeros behind a row's last (a row may have none).

        Raises ``StopIteration`` if no row has one.
        """
        some = self._of(next(medium for row in rows for medium in row))
        none = some.new_zeros(0, *some.shape)
        own = [torch.stack([self._of(m) for m in row]) if row else none for row in rows]
        return torch.nn.utils.rnn.pad_sequence(own, batch_first=True)

    def projected(self, rows: Sequence[Sequence[Media]]) -> ProjectedMedia:
        """Each row's media as the gated blocks read them, kept too (at least one in all).

        In the precision of the autocast around the call, which must be the same each time.
        """
        return ProjectedMedia.of_rows([[self._projected(m) for m in row] for row in rows])

    def _projected(self, medium: Media) -> Mapping[int, KeysValues]:
        key = media_key(medium)
        projected = self._projections.get(key)
        if projected is None:
            latents = self._of(medium).to(self._model.resampler.feature_mean.device)
            projected = self._model.project_media(latents[None])
            size = sum(kv.nbytes for kv in projected.values())
            while self._projections and (len(self._projections) + 1) * size > PROJECTIONS_BYTES:
                self._projections.popitem(last=False)
            self._projections[key] = projected
        else:
            self._projections.move_to_end(key)
        return projected

    def __len__(self) -> int:
        return len(self._latents)

    def _of(self, medium: Media) -> Float[Tensor, "latent dim"]:
        key = media_key(medium)
        latents = self._latents.get(key)
        if latents is None:
            latents = self._latents[key] = self._encoded(medium)
            self._bytes += latents.nbytes
            while self._bytes > self._capacity:
                _, oldest = self._latents.popitem(last=False)
                self._bytes -= oldest.nbytes
        else:
            self._latents.move_to_end(key)
        return latents

    @torch.no_grad()
    def _encoded(self, medium: Media) -> Float[Tensor, "latent dim"]:
        like = self._model.resampler.feature_mean
        loaded = self._load([medium])[None].to(like.device, like.dtype)
        with torch.autocast(like.device.type, enabled=False):
            if loaded.ndim == 6:
                latents = self._model.encode_media(pixel_values=loaded)
            else:
                latents = self._model.encode_media(vision_features=loaded)
        return latents[0, 0].cpu()
