"""What answers without the model are worth: text alone, chance, and the features' own ceiling.

A rule that leaves several answers open scores what a uniform choice among them is worth, so that
no baseline depends on how ties are broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from flamingo.evaluation.prompts import Episode
from flamingo.evaluation.scoring import exact_match
from flamingo.types import MediaLoader


class Baseline(Enum):
    """Rules to compare a model with."""

    majority = "majority"
    """The most frequent answer of the demonstrations."""
    last = "last"
    """The answer of the last demonstration."""
    prior = "prior"
    """The most frequent training answer to the same question."""
    chance = "chance"
    """A uniform guess among all answers."""
    centroid = "centroid"
    """Nearest class centroid of the demonstrations' own features: the ceiling of binding."""


def majority(episode: Episode) -> float | None:
    """Score of the demonstrations' most frequent answer; None without demonstrations."""
    counts = Counter(item.answer for item in episode.demonstrations)
    if not counts:
        return None
    most = max(counts.values())
    tied = [answer for answer, count in counts.items() if count == most]
    return sum(exact_match(answer, episode.query.answer) for answer in tied) / len(tied)


def last(episode: Episode) -> float | None:
    """Score of the last demonstration's answer; None without demonstrations."""
    if not episode.demonstrations:
        return None
    return exact_match(episode.demonstrations[-1].answer, episode.query.answer)


def prior(episode: Episode, answers: Mapping[str, str]) -> float:
    """Score of the best answer to the query's question without its image; 0 if it is unknown."""
    return exact_match(answers.get(episode.query.question, ""), episode.query.answer)


class PooledFeatures:
    """Frozen features averaged over frames and patches, standardised per channel, by image.

    Each medium is loaded once. ``mean`` and ``std`` are those of the feature store.
    """

    def __init__(
        self, load_media: MediaLoader, mean: Float[Tensor, " dim"], std: Float[Tensor, " dim"]
    ) -> None:
        self._load = load_media
        self._mean, self._std = mean.float(), std.float().clamp_min(1e-6)
        self._pooled: dict[tuple[str, ...], Tensor] = {}

    def add(self, episodes: Sequence[Episode], batch: int = 64) -> None:
        """Load what ``episodes`` show."""
        media = {
            tuple(frame.key for frame in item.media.frames): item.media
            for episode in episodes
            for item in (*episode.demonstrations, episode.query)
        }
        missing = [key for key in media if key not in self._pooled]
        for start in range(0, len(missing), batch):
            keys = missing[start : start + batch]
            features = self._load([media[key] for key in keys]).float()
            pooled = (features.mean(dim=(1, 2)) - self._mean) / self._std
            self._pooled.update(zip(keys, pooled, strict=True))

    def of(self, episode: Episode) -> tuple[Float[Tensor, " dim"], Float[Tensor, "shot dim"]]:
        """Features of the query and of the demonstrations."""
        keys = [
            tuple(frame.key for frame in item.media.frames)
            for item in (episode.query, *episode.demonstrations)
        ]
        features = torch.stack([self._pooled[key] for key in keys])
        return features[0], features[1:]


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
