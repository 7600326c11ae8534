"""The words of the project as types: what an image, a medium, a sequence and a batch are.

Everything that crosses a room's boundary is one of these. Shapes use one legend everywhere:
``batch`` rows, ``image`` media of a row, ``frame`` frames of a medium, ``patch`` tokens of the
vision encoder, ``latent`` tokens after the resampler, ``token`` text positions, ``dim`` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

IMAGE_TOKEN = "<image>"
END_OF_CHUNK_TOKEN = "<|endofchunk|>"
IGNORE_INDEX = -100
"""Label of a position that is not learned (the convention of torch and transformers)."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image by name, opened only when its pixels are needed.

    ``key`` identifies the image within a run (``"twemoji/1f600/2"``); two references with one key
    must show the same pixels. ``open`` returns it in RGB; it must be picklable (data workers).
    """

    key: str
    open: Callable[[], Image.Image] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Media:
    """What one ``<image>`` token stands for: a still image (one frame) or a clip of frames."""

    frames: tuple[ImageRef, ...]

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("Media.frames: expected at least one frame, got none")


@dataclass(frozen=True, slots=True)
class Text:
    """A stretch of text; ``learn`` says whether the model is trained to produce it."""

    text: str
    learn: bool = False


@dataclass(frozen=True, slots=True)
class InterleavedSequence:
    """Text and media in reading order. Media stand where their ``<image>`` token will be."""

    segments: tuple[Text | Media, ...]

    @property
    def media(self) -> tuple[Media, ...]:
        return tuple(s for s in self.segments if isinstance(s, Media))


@dataclass(frozen=True, slots=True)
class TokenizedSequence:
    """An interleaved sequence as ids, labels (``IGNORE_INDEX`` where not learned) and media."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    media: tuple[Media, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows for one forward pass.

    At most one of ``vision_features`` and ``pixel_values`` is set; without either it is text alone.
    Media beyond a row's ``<image>`` tokens are padding. ``source`` names each token's data source
    (an index into the mixture's names), for losses by source.

    ``documents`` numbers the documents that stand side by side in a row, 0, 1, 2, ...: they do not
    see each other, neither text nor media. Padding has the number of the document before it.
    Without it every row is one document. The media of a row are those of its documents in order.
    """

    input_ids: Int[Tensor, "batch token"]
    attention_mask: Int[Tensor, "batch token"]
    labels: Int[Tensor, "batch token"]
    source: Int[Tensor, "batch token"]
    vision_features: Float[Tensor, "batch image frame patch dim"] | None = None
    pixel_values: Float[Tensor, "batch image frame 3 height width"] | None = None
    documents: Int[Tensor, "batch token"] | None = None


@runtime_checkable
class Source(Protocol):
    """An endless, random-access supply of training sequences.

    ``sequence(index)`` is a pure function of the source's configuration, its seed and ``index``:
    that alone makes resuming exact and independent of workers and world size.
    """

    name: str

    def images(self) -> Sequence[ImageRef]:
        """Every image a sequence can contain (to cache their features beforehand)."""
        ...

    def sequence(self, index: int) -> InterleavedSequence: ...


MediaLoader = Callable[[Sequence[Media]], Tensor]
"""Turns media (all with the same number of frames) into one tensor: features
``(image, frame, patch, dim)`` from the cache, or pixels ``(image, frame, 3, height, width)``."""
