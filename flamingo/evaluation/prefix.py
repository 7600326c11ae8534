"""Prompts read once: what follows them reads its own tokens alone.

Demonstrations that all prompts of a batch begin with (the *fixed* strategy) are read once for all
of them, and kept for the next batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flamingo.backbones.language import may_have_gaps
from flamingo.evaluation.latents import media_key
from flamingo.evaluation.scoring import Reader
from flamingo.model.media import FlamingoCache
from flamingo.types import Media

Prompt = tuple[Sequence[int], Sequence[Media]]
"""Ids and media."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """A batch of prompts that were read, with padding where ``mask`` is 0.

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
    reader: Reader, prompts: Sequence[Prompt], *, keep: bool, shared: int | None = None
) -> Prefix:
    """Read ids with their media; ``keep`` the cache for texts that follow.

    ``shared`` as :func:`common_tokens` says, by default. The latents must be prepared.
    """
    shared = common_tokens(reader, prompts) if shared is None else shared
    inputs = begun(reader, prompts, shared)
    inputs["input_ids"] = inputs["input_ids"][:, shared:]
    output = reader.model(
        **inputs,
        position_ids=_positions(inputs["attention_mask"])[:, shared:],
        use_cache=keep or shared > 0,
        logits_to_keep=1,
    )
    cache = output.past_key_values if keep else None
    return Prefix(inputs["attention_mask"], output.logits[:, -1], cache)


def begun(reader: Reader, prompts: Sequence[Prompt], shared: int) -> dict[str, Any]:
    """The model's inputs for ``prompts``, and a cache in which their first ``shared`` tokens were
    read (none: no cache)."""
    inputs = reader.inputs(prompts, shared)
    if shared == 0:
        return inputs
    ids, media = prompts[0]
    cache = _read_common(reader, ids[:shared], media[: reader.images_in(ids[:shared])])
    return inputs | {"past_key_values": _branch(cache, [0] * len(prompts))}


def common_tokens(reader: Reader, prompts: Sequence[Prompt]) -> int:
    """Tokens up to the end of the last demonstration that all prompts begin with, media included.

    Every prompt has at least two more. 0 for a prompt alone, whose bits are to depend on nothing
    but itself, and for a language model that cannot have padding behind them.
    """
    if len(prompts) == 1 or not may_have_gaps(reader.model.language_model):
        return 0
    config, shown, common = reader.model.config, 0, 0
    (first, media), *others = prompts
    for place in range(min(len(ids) for ids, _ in prompts) - 2):
        if any(ids[place] != first[place] for ids, _ in others):
            break
        if first[place] == config.image_token_id:
            key = media_key(media[shown])
            if any(media_key(theirs[shown]) != key for _, theirs in others):
                break
            shown += 1
        if first[place] == config.end_of_chunk_token_id:
            common = place + 1
    return common


def _read_common(reader: Reader, ids: Sequence[int], media: Sequence[Media]) -> FlamingoCache:
    """One row with ``ids`` and ``media``; the same as last time is not read again."""
    last, keys = reader.common, [media_key(medium) for medium in media]
    if last.cache is None or list(last.ids) != list(ids) or last.media != keys:
        output = reader.model(**reader.inputs([(ids, media)]), use_cache=True, logits_to_keep=1)
        last.ids, last.media, last.cache = ids, keys, output.past_key_values
    assert last.cache is not None
    return last.cache


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
