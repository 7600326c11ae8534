"""Retrieval features of queries and pool, from a run's own frozen backbones, kept on disk.

Images: the frozen encoder's features, averaged over the patches, or its class token. Questions:
the frozen LM's hidden states at a quarter of its depth, averaged over the tokens. Of SmolLM2's 30
layers the 8th puts questions about the same thing together best.

An encoder or a language model is loaded only for vectors that are not on disk yet.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flamingo.choices import Pooling, Similarity
from flamingo.evaluation.benchmarks.files import image_file
from flamingo.evaluation.draws import generator
from flamingo.evaluation.latents import media_key
from flamingo.evaluation.planning import Similar
from flamingo.evaluation.pool import by_content
from flamingo.evaluation.prompts import Item
from flamingo.evaluation.retrieval import Index, mix
from flamingo.evaluation.retrieval_features import HiddenStates, image_features, text_features
from flamingo.evaluation.vector_cache import cached_vectors
from flamingo.types import ImageRef, Media, MediaLoader

REFERENCES = 512
"""Questions of the pool by which hidden states are standardised."""


@dataclass(frozen=True)
class ImageSource:
    """The frozen vision encoder: what identifies it, and a loader of its features of images."""

    fingerprint: str
    load: Callable[[Sequence[ImageRef]], MediaLoader]


@dataclass(frozen=True)
class TextSource:
    """The frozen LM: what identifies it and its precision, its tokenizer, and how it is loaded."""

    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    load: Callable[[], PreTrainedModel]


_Vectors = tuple[Float[Tensor, "query dim"], Float[Tensor, "item dim"], str]
"""Of the queries and of the pool, and what they are."""


@dataclass(frozen=True)
class Retriever:
    """Vectors by ``similarity``, kept in ``folder``; a ``planner.Retrieve``.

    ``question_weight`` is that of the question against the image where both count.
    """

    similarity: Similarity
    question_weight: float
    folder: Path
    images: ImageSource
    texts: TextSource
    pooling: Pooling = Pooling.mean

    def __call__(self, queries: Sequence[Item], pool: Sequence[Item]) -> Similar:
        """Index of ``pool`` and vectors of ``queries``.

        Raises ``ValueError`` by question where there is none, or but one in the pool.
        """
        match self.similarity:
            case Similarity.image:
                asked, offered, name = self._by_image(queries, pool)
            case Similarity.question:
                asked, offered, name = self._by_question(queries, pool)
            case Similarity.mixed:
                first, second = self._by_question(queries, pool), self._by_image(queries, pool)
                asked = mix(first[0], second[0], self.question_weight)
                offered = mix(first[1], second[1], self.question_weight)
                name = f"{first[2]}, weighted {self.question_weight}; {second[2]}"
        return Similar(Index.build(offered), asked, name)

    def _by_image(self, queries: Sequence[Item], pool: Sequence[Item]) -> _Vectors:
        source = f"{_POOLED[self.pooling]}, {self.images.fingerprint}"
        asked, offered = (self._image_vectors(items, source) for items in (queries, pool))
        return asked, offered, f"image, {self.pooling.value} of {self.images.fingerprint[:16]}"

    def _image_vectors(self, items: Sequence[Item], source: str) -> Float[Tensor, "item dim"]:
        media = {media_key(item.media): item.media for item in items if item.media is not None}
        assert all(item.media is not None for item in items), "items of a data set have images"
        known: dict[str, str] = {}
        vectors = cached_vectors(
            self.folder,
            "image",
            source,
            [json.dumps([_identity(f, known) for f in m.frames]) for m in media.values()],
            lambda: self._encoded(list(media.values())),
        )
        place = {key: i for i, key in enumerate(media)}
        return vectors[[place[media_key(item.media)] for item in items if item.media is not None]]

    def _encoded(self, media: Sequence[Media]) -> Float[Tensor, "item dim"]:
        frames = [frame for medium in media for frame in medium.frames]
        return image_features(media, self.images.load(frames), self.pooling)

    def _by_question(self, queries: Sequence[Item], pool: Sequence[Item]) -> _Vectors:
        offered = sorted({item.question for item in pool})
        if len(offered) < 2 or "" in offered:
            raise ValueError(
                "evaluation.demonstrations.similarity: expected image where not every "
                f"demonstration has a question or all have the same, got {self.similarity.value}"
            )
        count = min(REFERENCES, len(offered))
        reference = tuple(generator("reference questions").sample(offered, count))
        digest = hashlib.sha256(json.dumps(reference).encode()).hexdigest()
        source = (
            f"hidden states at a quarter of the depth, {self.texts.fingerprint}, "
            f"standardised by {digest}"
        )
        loaded: list[HiddenStates] = []

        def encode(texts: Sequence[str]) -> Float[Tensor, "text dim"]:
            if not loaded:  # once for queries and pool, and forgotten with this call
                loaded.append(self._hidden_states(reference))
            return loaded[0](texts)

        def vectors(items: Sequence[Item]) -> Float[Tensor, "item dim"]:
            texts = list(dict.fromkeys(item.question for item in items))
            rows = cached_vectors(
                self.folder, "question", source, texts, lambda: text_features(texts, encode)
            )
            place = {text: i for i, text in enumerate(texts)}
            return rows[[place[item.question] for item in items]]

        name = f"question, hidden states of {self.texts.fingerprint[:16]}"
        return vectors(queries), vectors(pool), name

    def _hidden_states(self, reference: tuple[str, ...]) -> HiddenStates:
        model = self.texts.load()
        layers = model.config.get_text_config().num_hidden_layers
        return HiddenStates(model, self.texts.tokenizer, reference, layer=-(-layers // 4))


_POOLED = {Pooling.mean: "mean of the patches", Pooling.cls: "class token"}


def _identity(image: ImageRef, known: dict[str, str]) -> str:
    """What the vectors of an image depend on: its file as it is now, or its pixels."""
    if image.key not in known:
        path = image_file(image)
        if path is None:
            known[image.key] = by_content(image)
        else:
            found = os.stat(path)
            known[image.key] = f"{os.path.abspath(path)} {found.st_size} {found.st_mtime_ns}"
    return known[image.key]
