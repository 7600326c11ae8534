"""Frozen vision features, computed once per image and kept memory-mapped in half precision.

A :class:`FeatureStore` and its two siblings are ``MediaLoader``s: media in, one tensor out.
:class:`EncodingLoader` gives the same numbers without a cache, :class:`PixelLoader` gives pixels
for a vision encoder inside the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from flamingo.data.feature_file import FeatureFile
from flamingo.types import ImageRef, Media

READERS = 2
"""Threads that open, hash and transform images while the encoder works."""

Item = TypeVar("Item")
Made = TypeVar("Made")


@runtime_checkable
class FeatureEncoder(Protocol):
    """What features need of ``flamingo.backbones.vision.VisionEncoder``."""

    dim: int
    patches: int
    fingerprint: str

    def transform(self, image: Image.Image) -> Float[Tensor, "3 height width"]: ...

    def __call__(
        self, pixel_values: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image patch dim"]: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...


def content_hash(image: Image.Image) -> bytes:
    """SHA-256 of an RGB image's size and pixels (32 bytes), whatever file it came from."""
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
    digest.update(image.tobytes())
    return digest.digest()


@torch.no_grad()
def encode(
    encoder: FeatureEncoder, pixels: Sequence[Float[Tensor, "3 height width"]]
) -> Float[Tensor, "image patch dim"]:
    """Features in half precision, on the CPU. Raises ``ValueError`` if they do not fit into it."""
    device = next(iter(encoder.parameters())).device
    features = encoder(torch.stack(list(pixels)).to(device)).to("cpu", torch.float16)
    if not torch.isfinite(features).all():
        raise ValueError(
            "vision encoder: expected features within half precision (+-65504), got larger or "
            "non-finite ones"
        )
    return features


# ---------------------------------------------------------------------------- the store


@dataclass
class FeatureStore:
    """Features of a set of images, by their keys.

    A row of ``file`` belongs to an image's content: renamed, copied or shared images are
    encoded once. Each dtype that an encoder computes in has its own. Picklable: data workers open
    the file anew.
    """

    file: FeatureFile
    rows: dict[str, int]

    @classmethod
    def build(
        cls,
        images: Iterable[ImageRef],
        encoder: FeatureEncoder,
        folder: str | Path,
        batch_size: int = 64,
    ) -> FeatureStore:
        """The features of ``images``, of which only those ``folder`` lacks are encoded.

        Every image is opened to hash its content, by several processes side by side, and again if
        it is to be encoded. Only who lacks some waits for another process that encodes, and then
        encodes what is still missing. Encoded batches are kept at once: an interrupted build goes
        on where it was. Shows progress bars. An image that cannot be opened raises its error (which
        names it), one that changes meanwhile ``ValueError``; no space left raises ``OSError``; what
        is stored stays intact.
        """
        references = list({image.key: image for image in images}.values())
        computed_in = str(next(iter(encoder.parameters())).dtype).removeprefix("torch.")
        file = FeatureFile(
            Path(folder), encoder.fingerprint, encoder.patches, encoder.dim, computed_in
        )
        contents = _contents(references, batch_size)
        index = file.stored()
        if not index.keys() >= contents.keys():
            with file.writing() as index:
                missing = [item for item in contents.items() if item[0] not in index]
                _encode_missing(missing, encoder, file, batch_size)
        return cls(
            file, {ref.key: index[hash_] for hash_, refs in contents.items() for ref in refs}
        )

    def load(self, media: Sequence[Media]) -> Float[Tensor, "image frame patch dim"]:
        """The stored features (fp16; the model casts). Raises ``KeyError`` for an unknown image."""
        frames = [self._row(frame.key) for medium in media for frame in medium.frames]
        features = torch.from_numpy(self.file.read(frames))
        return features.reshape(len(media), -1, *features.shape[1:])

    def __call__(self, media: Sequence[Media]) -> Float[Tensor, "image frame patch dim"]:
        """:meth:`load`: the store is a ``MediaLoader``."""
        return self.load(media)

    def statistics(
        self, keys: Iterable[str] | None = None
    ) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
        """Mean and standard deviation of each channel over all patches of the images ``keys``.

        By default of every image of the store; images of equal content count once. Accumulated in
        fp64 about the first row's mean, returned in fp32.
        """
        rows = sorted({self._row(key) for key in (self.rows if keys is None else keys)})
        if not rows:
            raise ValueError("keys: expected at least one image, got none")
        shift = self.file.read(rows[:1]).astype(np.float64).mean(axis=(0, 1))
        total, squares = np.zeros_like(shift), np.zeros_like(shift)
        for start in range(0, len(rows), 64):
            part = self.file.read(rows[start : start + 64]).astype(np.float64) - shift
            total += part.sum(axis=(0, 1))
            squares += np.einsum("rpd,rpd->d", part, part)
        mean = total / (len(rows) * self.file.patches)
        variance = squares / (len(rows) * self.file.patches) - mean**2
        std = np.sqrt(np.maximum(variance, 0))
        return torch.from_numpy(mean + shift).float(), torch.from_numpy(std).float()

    def _row(self, key: str) -> int:
        try:
            return self.rows[key]
        except KeyError:
            raise KeyError(
                f"feature store: expected one of its {len(self.rows)} images, got {key!r}"
            ) from None


def _contents(references: Sequence[ImageRef], batch_size: int) -> dict[bytes, list[ImageRef]]:
    """The images by the hash of their content."""
    contents: dict[bytes, list[ImageRef]] = {}
    with (
        ThreadPoolExecutor(READERS) as pool,
        tqdm(total=len(references), desc="reading images", unit="image") as bar,
    ):
        for part in _ahead(pool, lambda image: content_hash(image.open()), references, batch_size):
            for reference, digest in part:
                contents.setdefault(digest, []).append(reference)
            bar.update(len(part))
    return contents


def _encode_missing(
    missing: Sequence[tuple[bytes, list[ImageRef]]],
    encoder: FeatureEncoder,
    file: FeatureFile,
    batch_size: int,
) -> None:
    """Encode one image of each content, and store its features."""

    def pixels(item: tuple[bytes, list[ImageRef]]) -> Tensor:
        digest, (reference, *_) = item
        image = reference.open()
        if content_hash(image) != digest:
            raise ValueError(
                f"{reference.key}: expected the image that was read before, it changed"
            )
        return encoder.transform(image)

    with (
        ThreadPoolExecutor(READERS) as pool,
        tqdm(total=len(missing), desc="vision features", unit="image") as bar,
    ):
        for part in _ahead(pool, pixels, missing, batch_size):
            features = encode(encoder, [prepared for _, prepared in part])
            file.append([digest for (digest, _), _ in part], features.numpy())
            bar.update(len(part))


def _ahead(
    pool: ThreadPoolExecutor, prepare: Callable[[Item], Made], items: Sequence[Item], size: int
) -> Iterator[list[tuple[Item, Made]]]:
    """Batches of items and what is made of them, the next in the making while one is used."""
    parts = [items[i : i + size] for i in range(0, len(items), size)]
    waiting = [pool.submit(prepare, item) for item in parts[0]] if parts else []
    for part, following in pairwise([*parts, []]):
        current, waiting = waiting, [pool.submit(prepare, item) for item in following]
        yield list(zip(part, [future.result() for future in current], strict=True))


# ---------------------------------------------------------------------------- without a cache


@dataclass(frozen=True)
class EncodingLoader:
    """Encodes media when they are asked for, rounded through fp16 as the store's are."""

    encoder: FeatureEncoder

    def __call__(self, media: Sequence[Media]) -> Float[Tensor, "image frame patch dim"]:
        frames = [frame for medium in media for frame in medium.frames]
        references = {frame.key: frame for frame in frames}
        pixels = [self.encoder.transform(reference.open()) for reference in references.values()]
        position = {key: i for i, key in enumerate(references)}
        features = encode(self.encoder, pixels)[[position[frame.key] for frame in frames]]
        return features.reshape(len(media), -1, *features.shape[1:])


@dataclass(frozen=True)
class PixelLoader:
    """Transformed images, for a vision encoder inside the model."""

    transform: Callable[[Image.Image], Float[Tensor, "3 height width"]]

    def __call__(self, media: Sequence[Media]) -> Float[Tensor, "image frame 3 height width"]:
        frames = [frame for medium in media for frame in medium.frames]
        references = {frame.key: frame for frame in frames}
        pixels = {key: self.transform(reference.open()) for key, reference in references.items()}
        stacked = torch.stack([pixels[frame.key] for frame in frames])
        return stacked.reshape(len(media), -1, *stacked.shape[1:])


def uncached_loader(encoder: FeatureEncoder, *, cache_features: bool) -> MediaLoader:
    """Without a cache the numbers that a run with (or without) ``data.cache_features`` sees."""
    return EncodingLoader(encoder) if cache_features else PixelLoader(encoder.transform)
