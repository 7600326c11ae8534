"""Texts and images of a document as a sequence, in the layout and with the loss of OpenFlamingo.

But for one token: behind a caption's ``<|endofchunk|>`` OpenFlamingo learns the language model's
own end of text too, which is all but free, so that its caption losses are lower than ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from flamingo.data.documents import Dropped
from flamingo.source_config import CaptionedSourceConfig, PageSourceConfig
from flamingo.types import END_OF_CHUNK_TOKEN, IMAGE_TOKEN, InterleavedSequence, Media, Text

MALFORMED = Dropped("malformed record")
NO_IMAGE = Dropped("no image")
DISSIMILAR = Dropped("no image similar to the text")
TOO_FEW_IMAGES = Dropped("too few images")
SINGLE_IMAGE = Dropped("single image")
TOO_FEW_FRAMES = Dropped("too few frames")
NO_TEXT = Dropped("no text to learn")
SPECIAL_TOKEN = Dropped("text contains a special token")
NO_CAPTION = Dropped("no caption")
SHORT_CAPTION = Dropped("caption too short")
LONG_CAPTION = Dropped("caption too long")


def interleave(
    parts: Sequence[str | Media], *, joint: str, learn_before_first_image: bool = False
) -> InterleavedSequence | Dropped:
    """``text<image>text<|endofchunk|><image>text<|endofchunk|>`` of parts in reading order.

    A chunk is an image and the texts up to the next one, joined by ``joint``, without the white
    space around them. As in OpenFlamingo, ``<|endofchunk|>`` closes each chunk, and everything
    after the first image is learned, with the ends of chunks; nothing then stands between an
    ``<|endofchunk|>`` and the next ``<image>``, which is the other place without loss. The text
    before the first image is no chunk, and not learned unless ``learn_before_first_image``.

    :data:`Dropped` if a text is :func:`unfit`, or if nothing is learned but ends of chunks.
    """
    refused = unfit(part for part in parts if isinstance(part, str))
    if refused is not None:
        return refused
    places = [place for place, part in enumerate(parts) if isinstance(part, Media)]
    segments: list[Text | Media] = []
    chunks = []
    for start, end in zip([-1, *places], [*places, len(parts)], strict=True):
        text = joint.join(str(part) for part in parts[start + 1 : end]).strip()
        if start >= 0:
            medium = parts[start]
            assert isinstance(medium, Media)
            segments += [medium, Text(f"{text}{END_OF_CHUNK_TOKEN}", learn=True)]
            chunks.append(text)
        elif text:
            segments.append(Text(text, learn=learn_before_first_image))
            chunks += [text] * learn_before_first_image
    return InterleavedSequence(tuple(segments)) if any(chunks) else NO_TEXT


def too_few_images(
    images: int, config: PageSourceConfig, generator: np.random.Generator
) -> Dropped | None:
    """Why a document with so many images is dropped, if it is; one image: by chance."""
    if images < config.min_images:
        return TOO_FEW_IMAGES if images else NO_IMAGE
    if images == 1 and generator.random() < config.single_image_rejection:
        return SINGLE_IMAGE
    return None


def captioned(
    medium: Media, caption: str, config: CaptionedSourceConfig
) -> InterleavedSequence | Dropped:
    """``<image>caption<|endofchunk|>``, learned, of a caption within the limits of words."""
    caption = caption.strip()
    words = len(caption.split())
    if words == 0:
        return NO_CAPTION
    if words < config.min_words:
        return SHORT_CAPTION
    if config.max_words is not None and words > config.max_words:
        return LONG_CAPTION
    return interleave([medium, caption], joint="")


def unfit(texts: Iterable[str]) -> Dropped | None:
    """Why ``texts`` cannot be learned from, if so.

    Web pages contain ``<image>`` and ``<|endofchunk|>``, and JSON halves of surrogate pairs, which
    no tokenizer takes.
    """
    for text in texts:
        if IMAGE_TOKEN in text or END_OF_CHUNK_TOKEN in text:
            return SPECIAL_TOKEN
        try:
            text.encode()
        except UnicodeEncodeError:
            return MALFORMED
    return None
