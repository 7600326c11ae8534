"""What answers without the model are worth: text alone, chance, and the features' own ceiling.

A rule gives all answers that it leaves open. What a uniform choice among them is worth under the
benchmark's own metric is its score, so that no baseline depends on how ties are broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from flamingo.evaluation.latents import Key, media_key
from flamingo.evaluation.metrics.scores import POSITIVE
from flamingo.evaluation.prompts import Episode, Item
from flamingo.types import Media, MediaLoader

Guess = tuple[str, ...]
"""Equally likely answers, all different; none where a rule has nothing to say."""


class Baseline(Enum):
    """Rules to compare a model with."""

    majority = "majority"
    """The most frequent answer of the demonstrations."""
    last = "last"
    """The answer of the last demonstration."""
    nearest_question = "nearest_question"
    """The answer of the pool's most similar question."""
    prior = "prior"
    """The most frequent answer of the pool to the same question."""
    chance = "chance"
    """A uniform guess among all answers."""
    centroid = "centroid"
    """Nearest class centroid of the demonstrations' own features: the ceiling of binding."""


def majority(episode: Episode) -> Guess:
    """The most frequent answers of the demonstrations."""
    return most_frequent(Counter(item.answer for item in episode.demonstrations))


def last(episode: Episode) -> Guess:
    """The last demonstration's answer; there must be one."""
    return (episode.demonstrations[-1].answer,)


def most_frequent(counts: Mapping[str, int]) -> Guess:
    """All answers that no other is more frequent than, in ascending order."""
    most = max(counts.values(), default=0)
    return tuple(sorted(answer for answer, count in counts.items() if count == most))


def positive(guess: Guess) -> float:
    """The probability of :data:`POSITIVE`; 0.5, which orders nothing, where there is no guess."""
    if not guess:
        return 0.5
    return sum(answer.strip().lower() == POSITIVE for answer in guess) / len(guess)


class PooledFeatures:
    """Frozen features averaged over frames and patches, by image, each loaded once."""

    def __init__(self, load_media: MediaLoader, batch_size: int = 64) -> None:
        self._load = load_media
        self._batch_size = batch_size
        self._pooled: dict[Key, Float[Tensor, " dim"]] = {}

    def of(self, episodes: Sequence[Episode]) -> list[Float[Tensor, "item dim"]]:
        """Features of each episode's query (first) and demonstrations.

        Standardised per channel over all images of ``episodes``. Raises ``ValueError`` if the
        media loader gives pixels, and for an item without an image.
        """
        shown = [
            [_medium(item) for item in (episode.query, *episode.demonstrations)]
            for episode in episodes
        ]
        distinct = {media_key(medium): medium for media in shown for medium in media}
        self._add(distinct)
        std, mean = torch.std_mean(torch.stack([self._pooled[key] for key in distinct]), dim=0)
        standardised = {key: (self._pooled[key] - mean) / std.clamp_min(1e-6) for key in distinct}
        return [torch.stack([standardised[media_key(m)] for m in media]) for media in shown]

    def _add(self, media: Mapping[Key, Media]) -> None:
        missing = [key for key in media if key not in self._pooled]
        for start in range(0, len(missing), self._batch_size):
            keys = missing[start : start + self._batch_size]
            features = self._load([media[key] for key in keys])
            if features.ndim != 4:
                raise ValueError("load_media: expected vision features, got pixels")
            pooled = features.float().mean(dim=(1, 2))
            self._pooled.update(zip(keys, pooled, strict=True))


def _medium(item: Item) -> Media:
    if item.media is None:
        raise ValueError(f"features: expected an image in item {item.id!r}, got text alone")
    return item.media


def nearest_centroid(
    query: Float[Tensor, " dim"], demonstrations: Float[Tensor, "shot dim"], answers: Sequence[str]
) -> str:
    """The answer whose demonstrations' mean is nearest to the query (Euclidean).

    Of equally near ones the first in the alphabet. Raises ``ValueError`` without demonstrations.
    """
    if not answers:
        raise ValueError("demonstrations: expected at least one, got none")
    names = sorted(set(answers))
    centroids = torch.stack(
        [demonstrations[[answer == name for answer in answers]].mean(dim=0) for name in names]
    )
    return names[int((centroids - query).square().sum(dim=1).argmin())]
