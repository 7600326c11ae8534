"""OBELICS: web pages as images and texts in reading order.

Laurençon et al. 2023, "OBELICS" (huggingface.co/datasets/HuggingFaceM4/OBELICS): parquet, whose
columns ``images`` and ``texts`` are equally long lists; at each place one of the two is null.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import StrictStr, TypeAdapter

from flamingo.choices import LearnedText
from flamingo.data.documents import Dropped, Record
from flamingo.data.interleaving import MALFORMED, interleave, too_few_images
from flamingo.data.records import document_of
from flamingo.data.shards import KEY
from flamingo.data.stored_images import image_below, stored_image
from flamingo.source_config import OBELICSSourceConfig
from flamingo.types import ImageRef, InterleavedSequence, Media


@dataclass(frozen=True, slots=True)
class _Document:
    images: list[Any]
    texts: list[StrictStr | None]


_DOCUMENT = TypeAdapter(_Document).validate_python


class OBELICSParser:
    """A page's texts, apart by an empty line, and those of its images that were fetched.

    An image is the bytes in ``images`` (``{"bytes": ..., "path": ...}`` as ``datasets`` stores it)
    or, where there are URLs, a file of the folder ``config.images``. A page ends before the image
    after its last allowed one: the text from there on is about images that are not shown.
    """

    def __init__(self, config: OBELICSSourceConfig) -> None:
        self.config = config

    def __call__(
        self, record: Record, generator: np.random.Generator
    ) -> InterleavedSequence | Dropped:
        document = document_of(record, _DOCUMENT)
        if document is None or not _consistent(document):
            return MALFORMED
        parts: list[str | Media] = []
        images = 0
        for place, (image, text) in enumerate(zip(document.images, document.texts, strict=True)):
            ref = None if image is None else self._ref(image, f"{record[KEY]}/{place}")
            if ref is not None:
                if images == self.config.max_images:
                    break
                parts.append(Media((ref,)))
                images += 1
            elif text is not None:
                parts.append(text)
        dropped = too_few_images(images, self.config, generator)
        if dropped is not None:
            return dropped
        return interleave(
            parts,
            joint="\n\n",
            learn_before_first_image=self.config.learn is LearnedText.everything,
        )

    def _ref(self, image: Any, key: str) -> ImageRef | None:
        """The image, or None if it was not fetched."""
        if not isinstance(image, str):
            return stored_image(key, image)
        if self.config.images is None:
            return None
        address = image.encode(errors="surrogatepass")
        return image_below(self.config.images, hashlib.sha256(address).hexdigest())


def _consistent(document: _Document) -> bool:
    """Whether there is an image or a text at each place, and not both."""
    images, texts = document.images, document.texts
    return len(images) == len(texts) and all(
        (image is None) != (text is None) for image, text in zip(images, texts, strict=True)
    )
