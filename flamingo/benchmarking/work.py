"""The work that every contender does: tokens, labels and features, drawn once from a seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flamingo.types import IGNORE_INDEX

WORD = re.compile(" [a-z]+")


@dataclass(frozen=True)
class Tokens:
    """The ids that the work is made of."""

    vocabulary: int
    """Text is drawn from the ids from ``first`` on and below this: the LM's own."""
    image: int
    end_of_chunk: int
    first: int = 100
    """Ids below it are a tokenizer's special ones."""


@dataclass(frozen=True)
class FeatureShape:
    """What a vision encoder gives of an image."""

    patches: int
    dim: int


@dataclass(frozen=True, eq=False)
class TrainingWork:
    """A batch of a training step. Every row is full, so no contender pays for padded text."""

    input_ids: Int[Tensor, "row token"]
    labels: Int[Tensor, "row token"]
    features: Float[Tensor, "row image 1 patch dim"]
    """Zeros behind a row's last image."""
    images: Int[Tensor, " row"]
    """Real images of each row."""

    def to(self, device: torch.device, dtype: torch.dtype) -> TrainingWork:
        """There, features in ``dtype``."""
        return TrainingWork(
            self.input_ids.to(device),
            self.labels.to(device),
            self.features.to(device, dtype),
            self.images.to(device),
        )


@dataclass(frozen=True, eq=False)
class PromptWork:
    """Prompts of equally many shots and tokens, and how far to go on from them."""

    input_ids: Int[Tensor, "row token"]
    features: Float[Tensor, "row image 1 patch dim"]
    """Of the demonstrations and, last, the query."""
    new_tokens: int
    beams: int = 1

    def to(self, device: torch.device, dtype: torch.dtype) -> PromptWork:
        """There, features in ``dtype``."""
        moved = self.features.to(device, dtype)
        return replace(self, input_ids=self.input_ids.to(device), features=moved)


@dataclass(frozen=True, eq=False)
class RankingWork:
    """Prompts, and the candidates that may follow each of them."""

    prompt: PromptWork
    texts: Sequence[str]
    """The candidates, each with its leading space."""
    candidates: Sequence[tuple[int, ...]]
    """Their ids."""
    rows: int
    """Of a batch."""


def training_work(
    tokens: Tokens,
    shape: FeatureShape,
    *,
    images: Sequence[int],
    length: int,
    padded: int,
    generator: torch.Generator,
) -> TrainingWork:
    """Rows of ``length`` tokens, row ``i`` with ``images[i]`` images at even distances.

    ``<image>`` text ``<|endofchunk|>`` ``<image>`` ...; learned is all but ``<image>`` and what
    stands before the first of a row, as OpenFlamingo trains on interleaved documents. Features are
    padded to ``padded`` images a row.
    """
    ids = _text(tokens, (len(images), length), generator)
    labels = ids.clone()
    features = torch.randn(len(images), padded, 1, shape.patches, shape.dim, generator=generator)
    for row, count in enumerate(images):
        starts = [length * i // count for i in range(count)]
        ids[row, starts] = tokens.image
        ends = [*(start - 1 for start in starts[1:]), length - 1]
        ids[row, ends] = tokens.end_of_chunk
        features[row, count:] = 0
    labels = ids.masked_fill(ids == tokens.image, IGNORE_INDEX)
    return TrainingWork(ids, labels, features, torch.tensor(list(images)))


def prompt_work(
    tokens: Tokens,
    shape: FeatureShape,
    *,
    rows: int,
    shots: int,
    tokens_a_shot: int,
    new_tokens: int,
    beams: int = 1,
    generator: torch.Generator,
) -> PromptWork:
    """``shots`` times ``<image>`` text ``<|endofchunk|>``, then ``<image>`` and half a shot's text,
    which is where the answer is to follow."""
    query = max(2, tokens_a_shot // 2)
    length = shots * tokens_a_shot + query
    ids = _text(tokens, (rows, length), generator)
    ids[:, ::tokens_a_shot] = tokens.image
    ids[:, tokens_a_shot - 1 : shots * tokens_a_shot : tokens_a_shot] = tokens.end_of_chunk
    features = torch.randn(rows, shots + 1, 1, shape.patches, shape.dim, generator=generator)
    return PromptWork(ids, features, new_tokens, beams)


def candidates(
    tokenizer: PreTrainedTokenizerBase, count: int, generator: torch.Generator
) -> dict[str, tuple[int, ...]]:
    """``count`` candidates of one to four words of the tokenizer's, by their text."""
    entries = sorted(tokenizer.get_vocab().values())
    words = [word for word in map(str, map(tokenizer.decode, entries)) if WORD.fullmatch(word)]
    found: dict[tuple[int, ...], str] = {}
    while len(found) < count:
        drawn = torch.randint(len(words), (1 + len(found) % 4,), generator=generator)
        text = "".join(words[index] for index in drawn.tolist())
        found[tuple(tokenizer(text, add_special_tokens=False)["input_ids"])] = text
    return {text: ids for ids, text in found.items()}


def _text(tokens: Tokens, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(tokens.first, tokens.vocabulary, shape, generator=generator)
