"""What demonstrations are retrieved by: a vector for an image, a vector for a question.

Images: the frozen encoder's features, pooled. Questions: any function from texts to vectors; two
come from the frozen LM itself. Neither depends on what else is encoded: vectors are the same for a
limited set of queries as for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flamingo.backbones.language import input_matrix
from flamingo.choices import Pooling
from flamingo.evaluation.latents import media_key
from flamingo.types import Media, MediaLoader

LENGTHS = 16
"""Texts are padded to a multiple of this many tokens."""


def image_features(
    media: Sequence[Media],
    load: MediaLoader,
    pooling: Pooling = Pooling.mean,
    batch_size: int = 64,
) -> Float[Tensor, "item dim"]:
    """One fp32 vector for each of ``media``, averaged over the frames of clips.

    ``load`` gives frozen features, normally from the feature store; equal media are loaded once.
    Raises ``ValueError`` if it gives pixels.
    """
    distinct = {media_key(medium): medium for medium in media}
    keys = list(distinct)
    vectors: dict[tuple[str, ...], Tensor] = {}
    for start in tqdm(range(0, len(keys), batch_size), desc="image vectors", disable=None):
        part = keys[start : start + batch_size]
        features = load([distinct[key] for key in part])
        if features.ndim != 4:
            raise ValueError("load: expected vision features, got pixels")
        # In fp64, so that the mean of an image does not vary with the shape of the batch.
        tokens = features.cpu().double()
        match pooling:
            case Pooling.mean:
                pooled = tokens.mean(dim=(1, 2))
            case Pooling.cls:
                pooled = tokens[:, :, 0].mean(dim=1)
        vectors.update(zip(part, pooled.float(), strict=True))
    return torch.stack([vectors[media_key(medium)] for medium in media])


TextEncoder = Callable[[Sequence[str]], Float[Tensor, "text dim"]]
"""Vectors of texts; the vector of a text must not depend on the texts beside it."""


def text_features(texts: Sequence[str], encode: TextEncoder) -> Float[Tensor, "item dim"]:
    """One fp32 vector for each of ``texts``; equal texts are encoded once.

    Raises ``ValueError`` if ``encode`` gives another number of vectors.
    """
    distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    vectors = encode(list(distinct))
    if len(vectors) != len(distinct):
        raise ValueError(
            f"encode: expected a vector for each of {len(distinct)} texts, got {len(vectors)}"
        )
    return vectors.cpu().float()[[distinct[text] for text in texts]]


@dataclass(frozen=True)
class HiddenStates:
    """Mean of the frozen LM's hidden states over a text's tokens, standardised per channel.

    ``layer`` indexes transformers' ``hidden_states`` (0: the embeddings, -1: the last). A few
    channels of a decoder are hundreds of times as large as the others and make all texts alike:
    each channel is centred and scaled by the mean and standard deviation over ``reference`` texts
    (a fixed sample of the pool's, at least two), not over the texts that happen to be encoded.

    Batches always have ``batch_size`` rows and a multiple of ``LENGTHS`` tokens, as another shape
    could round differently. Raises ``ValueError`` for a text without tokens.
    """

    language_model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: tuple[str, ...]
    layer: int = -1
    batch_size: int = 32

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        if len(set(self.reference)) < 2:
            raise ValueError(
                f"reference: expected at least two texts, got {len(set(self.reference))}"
            )
        sample = self._means(list(dict.fromkeys(self.reference))).double()
        std, mean = torch.std_mean(sample, dim=0)
        return ((self._means(texts) - mean) / std.clamp_min(1e-6)).float()

    @torch.no_grad()
    def _means(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        ids = _token_ids(self.tokenizer, texts)
        result = torch.empty(len(ids), self.language_model.config.get_text_config().hidden_size)
        by_length: dict[int, list[int]] = {}
        for place, own in enumerate(ids):
            by_length.setdefault(-(-len(own) // LENGTHS) * LENGTHS, []).append(place)
        for length, places in sorted(by_length.items()):
            for start in range(0, len(places), self.batch_size):
                part = places[start : start + self.batch_size]
                result[part] = self._batch([ids[place] for place in part], length)
        return result

    def _batch(self, ids: Sequence[Sequence[int]], length: int) -> Float[Tensor, "text dim"]:
        device = input_matrix(self.language_model).device
        input_ids = torch.zeros(self.batch_size, length, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        mask[:, 0] = 1  # rows that are only there for the shape
        for row, own in enumerate(ids):
            # Padded on the right: a decoder does not look ahead.
            input_ids[row, : len(own)] = torch.tensor(own)
            mask[row, : len(own)] = 1
        input_ids, mask = input_ids.to(device), mask.to(device)
        hidden = self.language_model.base_model(
            input_ids=input_ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states[self.layer]
        kept = hidden.double() * mask[:, :, None]
        means = kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return means[: len(ids)].float().cpu()


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if [] in ids:
        raise ValueError(
            f"texts: expected at least one token in each, got {texts[ids.index([])]!r}"
        )
    return ids
