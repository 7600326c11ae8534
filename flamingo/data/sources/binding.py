"""Concept binding: only the context tells which made-up word names which concept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flamingo.config import BindingSourceConfig
from flamingo.data.concepts import Concept, ConceptSet
from flamingo.data.words import Words
from flamingo.types import END_OF_CHUNK_TOKEN, ImageRef, InterleavedSequence, Media, Text

PROMPT = "This is a"
_STREAM = 2
"""Sources of one seed draw independently of each other."""


def naming_text(word: str, *, learn: bool = True) -> tuple[Text, Text]:
    """What follows ``<image>``: ``This is a``, and the word with its end."""
    return Text(PROMPT), Text(f" {word}{END_OF_CHUNK_TOKEN}", learn=learn)


class BindingSource:
    """Streams of ``images`` images of ``ways`` concepts, ``<image>This is a dax<|endofchunk|>``.

    Concepts and words are drawn anew for each sequence from those seen in training, so that
    nothing about a word can be remembered. Every concept appears before the last image; otherwise
    the order is random. The word is learned from a concept's second appearance on: the first one
    cannot be known. A concept shows another view each time until all its views are used up.
    """

    name = "binding"

    def __init__(
        self, config: BindingSourceConfig, seed: int, concepts: ConceptSet, words: Words
    ) -> None:
        self.config = config
        self.seed = seed
        self._concepts = concepts.seen
        self._words = words.seen
        for name, count in (("concepts", len(self._concepts)), ("words", len(self._words))):
            if count < config.max_ways:
                raise ValueError(
                    f"data.binding.max_ways: expected at most the {count} seen {name}, "
                    f"got {config.max_ways}"
                )

    def images(self) -> Sequence[ImageRef]:
        return [view for concept in self._concepts for view in concept.views]

    def sequence(self, index: int) -> InterleavedSequence:
        generator = np.random.default_rng((_STREAM, self.seed, index))
        ways = int(generator.integers(self.config.min_ways, self.config.max_ways + 1))
        chosen = generator.choice(len(self._concepts), ways, replace=False)
        words = generator.choice(len(self._words), ways, replace=False)
        stream = _class_stream(ways, self.config.images, generator)
        views = [
            _views(self._concepts[concept], stream.count(way), generator)
            for way, concept in enumerate(chosen)
        ]
        segments: list[Text | Media] = []
        appeared = [0] * ways
        for way in stream:
            segments.append(Media((views[way][appeared[way]],)))
            segments += naming_text(self._words[words[way]], learn=appeared[way] > 0)
            appeared[way] += 1
        return InterleavedSequence(tuple(segments))


def _class_stream(ways: int, images: int, generator: np.random.Generator) -> list[int]:
    """Class of each image: each at least once before the last, the others uniform.

    Drawn uniformly and not in equal numbers: with equal numbers the last classes could be told by
    counting, without looking.
    """
    extra = generator.integers(ways, size=images - 1 - ways)
    before = generator.permutation(np.concatenate([np.arange(ways), extra]))
    return [int(way) for way in (*before, generator.integers(ways))]


def _views(concept: Concept, count: int, generator: np.random.Generator) -> list[ImageRef]:
    """``count`` views, all different while they last, then in a new order, never twice in a row."""
    views: list[ImageRef] = []
    while len(views) < count:
        order = generator.permutation(len(concept.views))
        if views and len(order) > 1 and concept.views[order[0]] == views[-1]:
            order = np.roll(order, -1)
        views += [concept.views[position] for position in order]
    return views[:count]
