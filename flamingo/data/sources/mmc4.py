"""Multimodal C4: sentences of web pages, with images matched to them.

Zhu et al. 2023, "Multimodal C4" (github.com/allenai/mmc4): JSON lines, or OpenFlamingo's tars of
one ``json`` a document, in which images are base64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import StrictFloat, StrictInt, StrictStr, TypeAdapter

from flamingo.choices import ImageMatching, LearnedText
from flamingo.data.documents import Dropped, Record
from flamingo.data.interleaving import DISSIMILAR, MALFORMED, NO_IMAGE, interleave, too_few_images
from flamingo.data.matching import best_assignment
from flamingo.data.records import document_of
from flamingo.data.shards import KEY
from flamingo.data.stored_images import base64_image, image_below, stored_image
from flamingo.source_config import MMC4SourceConfig
from flamingo.types import ImageRef, InterleavedSequence, Media


@dataclass(frozen=True, slots=True)
class _Image:
    image_name: StrictStr | None = None
    matched_text_index: StrictInt | None = None
    matched_sim: StrictFloat | None = None
    image_base64: StrictStr | None = None
    image: Any = None
    """Bytes, where the documents were written with ``datasets``."""


@dataclass(frozen=True, slots=True)
class _Document:
    text_list: list[StrictStr]
    image_info: list[_Image]
    similarity_matrix: list[list[StrictFloat]] | None = None
    """(image, sentence)"""


_DOCUMENT = TypeAdapter(_Document).validate_python


class MMC4Parser:
    """A document as OpenFlamingo trains on it, but for the order of its images.

    Each image that could be fetched is matched to a sentence and, if similar enough, stands before
    it. Images are in the order of their sentences; OpenFlamingo keeps the order of ``image_info``,
    in which an ``<image>`` of the text may be another image than the one it was put there for.
    ``max_images`` therefore keeps the first in reading order. The text of images that are left out
    stays. Where OpenFlamingo counts images after it has cut a document to its length in tokens,
    they are counted here before.
    """

    def __init__(self, config: MMC4SourceConfig) -> None:
        self.config = config

    def __call__(
        self, record: Record, generator: np.random.Generator
    ) -> InterleavedSequence | Dropped:
        document = document_of(record, _DOCUMENT)
        if document is None or not _consistent(document, self.config.matching):
            return MALFORMED
        refs = [
            self._ref(image, f"{record[KEY]}/{n}") for n, image in enumerate(document.image_info)
        ]
        found = {number: ref for number, ref in enumerate(refs) if ref is not None}
        if not found:
            return NO_IMAGE
        sentences = self._matches(document, list(found))
        placed = sorted((sentence, number) for number, sentence in sentences.items())
        placed = placed[: self.config.max_images]
        if not placed:
            return DISSIMILAR
        dropped = too_few_images(len(placed), self.config, generator)
        if dropped is not None:
            return dropped
        parts: list[str | Media] = []
        for sentence, text in enumerate(document.text_list):
            parts += [Media((found[number],)) for place, number in placed if place == sentence]
            parts.append(text)
        return interleave(
            parts,
            joint=" ",
            learn_before_first_image=self.config.learn is LearnedText.everything,
        )

    def _ref(self, image: _Image, key: str) -> ImageRef | None:
        """The image, or None if it was not fetched, or is too small a file."""
        least = self.config.min_image_bytes
        if image.image_base64:
            small = len(image.image_base64) * 3 // 4 < least
            return None if small else base64_image(key, image.image_base64)
        if image.image is not None:
            data = image.image.get("bytes") if isinstance(image.image, Mapping) else image.image
            small = isinstance(data, bytes) and len(data) < least
            return None if small else stored_image(key, image.image)
        if self.config.images is not None and image.image_name:
            return image_below(self.config.images, image.image_name, at_least=least)
        return None

    def _matches(self, document: _Document, numbers: list[int]) -> dict[int, int]:
        """The sentence of each of the images ``numbers`` that is similar enough to one."""
        images = document.image_info
        match self.config.matching:
            case ImageMatching.assignment:
                weights = [(document.similarity_matrix or [])[number] for number in numbers]
                columns = best_assignment(weights)
                similarities = [
                    -np.inf if column is None else row[column]
                    for row, column in zip(weights, columns, strict=True)
                ]
            case ImageMatching.stored:
                columns = [images[number].matched_text_index for number in numbers]
                similarities = [images[number].matched_sim or 0.0 for number in numbers]
        return {
            number: column
            for number, column, similarity in zip(numbers, columns, similarities, strict=True)
            if column is not None and similarity >= self.config.similarity
        }


def _consistent(document: _Document, matching: ImageMatching) -> bool:
    """Whether what ``matching`` needs is there, and of the right size."""
    sentences = len(document.text_list)
    match matching:
        case ImageMatching.assignment:
            rows = document.similarity_matrix or []
            whole = len(rows) == len(document.image_info)
            return whole and all(len(r) == sentences and np.isfinite(r).all() for r in rows)
        case ImageMatching.stored:
            places = (image.matched_text_index for image in document.image_info)
            return all(place is None or 0 <= place < sentences for place in places)
