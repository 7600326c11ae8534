"""Prompts read once: what follows them reads its own tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flamingo.evaluation.scoring import Reader
from flamingo.model.media import FlamingoCache
from flamingo.types import Media


@dataclass(frozen=True, eq=False)
class Prefix:
    """A batch of prompts that were read, left-padded.

    ``cache`` holds the text's keys and values and the media's; None if it was not asked for.
    """

    mask: Int[Tensor, "prompt token"]
    logits: Float[Tensor, "prompt vocabulary"]
    """Of the token that follows each prompt."""
    cache: FlamingoCache | None

    def follow(
        self, reader: Reader, prompts: Sequence[int], texts: Sequence[Sequence[int]]
    ) -> Float[Tensor, "token vocabulary"]:
        """Logits behind every token of ``texts``, one after the other.

        ``texts[i]`` (at least one token) follows prompt number ``prompts[i]``; a prompt may have
        any number of texts, side by side. The prefix stays as it is.
        """
        assert self.cache is not None
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        real = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            real[row, : len(text)] = 1
        ids, real = ids.to(self.mask.device), real.to(self.mask.device)
        mask = torch.cat([self.mask[torch.tensor(prompts, device=self.mask.device)], real], dim=1)
        output = reader.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=_positions(mask)[:, -ids.shape[1] :],
            past_key_values=_branch(self.cache, prompts),
            logits_to_keep=real.bool(),
        )
        return output.logits


def read_prompts(
    reader: Reader, prompts: Sequence[tuple[Sequence[int], Sequence[Media]]], *, keep: bool
) -> Prefix:
    """Read ids with their media; ``keep`` the cache for texts that follow.

    The latents must be prepared.
    """
    inputs = reader.inputs(prompts)
    output = reader.model(
        **inputs,
        position_ids=_positions(inputs["attention_mask"]),
        use_cache=keep,
        logits_to_keep=1,
    )
    return Prefix(inputs["attention_mask"], output.logits[:, -1], output.past_key_values)


def _positions(mask: Int[Tensor, "row token"]) -> Int[Tensor, "row token"]:
    """Positions that do not count padding, as transformers' ``generate`` gives them."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _branch(cache: FlamingoCache, rows: Sequence[int]) -> FlamingoCache:
    """A cache of its own with a choice of ``cache``'s rows (repeated ones side by side).

    Rows that are repeated equally often share their media, as beams do.
    """
    own = copy(cache)
    own.layers = [copy(layer) for layer in cache.layers]  # a layer replaces its tensors
    assert cache.media is not None
    chosen = torch.tensor(rows, device=cache.media.seen.device)
    distinct, counts = torch.unique_consecutive(chosen, return_counts=True)
    repeats = int(counts[0])
    if bool((counts == repeats).all()):
        own.batch_select_indices(distinct)
        own.batch_repeat_interleave(repeats)
    else:
        own.batch_select_indices(chosen)
    return own
