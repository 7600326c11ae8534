"""Beam search by transformers, with each prompt read once, and how close its decisions were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.prefix import common_tokens, read_prompts
from flamingo.evaluation.scoring import Reader
from flamingo.types import Media, TokenizedSequence


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """The tokens found for a prompt, the end included, and the sum of their log-likelihoods.

    ``margin``: by how many nats the closest decision fell that they hang on.
    """

    ids: list[int]
    log_likelihood: float
    margin: float


@torch.no_grad()
def search(
    reader: Reader, prompts: Sequence[TokenizedSequence], decoding: Decoding, ends: set[int]
) -> list[Hypothesis]:
    """The best of ``decoding.beams`` beams for each prompt, as transformers' ``generate`` finds it.

    All but a prompt's last token are read once for all beams, and its media are projected once.
    With a positive length penalty the search goes on until no beam can win any more
    (``early_stopping="never"``): transformers' default stops at a guess.

    Beams are cut where the ``beams``-th and the next differ by little, and another batch could cut
    the other one. The margin counts such a cut only if it can touch the result: a beam's
    likelihood never grows, so one that was cut, or took another's place, can reach the best only
    if it stood no more than the reader's margin below it. (For a length penalty: below the worst
    likelihood that can end with the best score.) It also counts the lead over the second beam.
    So a margin of at least the reader's means: while no log-likelihood is off by more than half of
    that, the best beam is the same in any batch. Lower beams may differ.
    """
    shared = common_tokens(reader, [(p.input_ids, p.media) for p in prompts])
    inputs = reader.inputs([(p.input_ids, ()) for p in prompts], shared)
    length = inputs["input_ids"].shape[1]
    steps = _Steps(len(prompts), decoding.beams, ends)
    with reader.autocast():
        if length > 1:
            inputs |= _all_but_the_last(reader, prompts, decoding.beams, shared)
        else:
            inputs |= reader.media([p.media for p in prompts])
        output = reader.model.generate(
            **inputs,
            max_new_tokens=decoding.max_new_tokens,
            num_beams=decoding.beams,
            num_return_sequences=2,
            length_penalty=decoding.length_penalty,
            early_stopping="never" if decoding.length_penalty > 0 else False,
            do_sample=False,
            logits_processor=LogitsProcessorList([steps]),
            output_scores=True,
            return_dict_in_generate=True,
        )
    best, second = output.sequences_scores.float().view(-1, 2).unbind(dim=1)
    # The lowest likelihood a beam can have and still end with the best score.
    needed = best * max(1.0, decoding.max_new_tokens**decoding.length_penalty)
    margins = torch.minimum(best - second, steps.closest(needed - reader.margin)).tolist()
    found = []
    for row, ids in enumerate(output.sequences[::2, length:].tolist()):
        tokens = next((n for n, token in enumerate(ids, start=1) if token in ends), len(ids))
        total = best[row].item() * tokens**decoding.length_penalty
        found.append(Hypothesis(ids[:tokens], total, margins[row]))
    return found


def _all_but_the_last(
    reader: Reader, prompts: Sequence[TokenizedSequence], beams: int, shared: int
) -> dict[str, Any]:
    """What ``generate`` needs to go on behind all but the last token of each prompt.

    The first ``shared`` tokens are read once for all prompts.
    """
    image = reader.model.config.image_token_id
    read: list[tuple[Sequence[int], Sequence[Media]]] = []
    left: list[Sequence[Media]] = []
    for prompt in prompts:
        split = len(prompt.media) - (prompt.input_ids[-1] == image)
        read.append((prompt.input_ids[:-1], prompt.media[:split]))
        left.append(prompt.media[split:])
    cache = read_prompts(reader, read, keep=True, shared=shared).cache
    assert cache is not None
    cache.batch_repeat_interleave(beams)
    rest: dict[str, Any] = {"past_key_values": cache}
    return rest | reader.media(left)


class _Steps(LogitsProcessor):
    """Follows one search: every step's likelihoods, and where the beams were cut.

    Makes each step's scores likelihoods that sum to one again, without the tokens that are never
    generated, as they are for greedy answers. Serves one call of ``generate``.
    """

    def __init__(self, prompts: int, beams: int, ends: set[int]) -> None:
        self._shape = (prompts, beams)
        self._ends = sorted(ends)
        self._ids: Int[Tensor, "prompt beam token"] | None = None
        self._totals: Float[Tensor, "prompt beam vocabulary"] | None = None
        self._cuts: list[Float[Tensor, "prompt two"]] = []

    def __call__(
        self, input_ids: Int[Tensor, "row token"], scores: Float[Tensor, "row vocabulary"]
    ) -> Float[Tensor, "row vocabulary"]:
        likely = scores.float().log_softmax(dim=-1)
        ids = input_ids.unflatten(0, self._shape)
        self._totals = self._running(ids)[..., None] + likely.unflatten(0, self._shape)
        self._ids = ids
        self._cut(self._totals)
        going_on = self._totals.clone()
        going_on[..., self._ends] = -math.inf
        self._cut(going_on)
        return likely

    def _running(self, ids: Int[Tensor, "prompt beam token"]) -> Float[Tensor, "prompt beam"]:
        """The log-likelihood of each beam, found again by its tokens."""
        if self._ids is None or self._totals is None:
            first = torch.full(self._shape, -1e9, device=ids.device)  # all beams are one at first
            first[:, 0] = 0
            return first
        same = (ids[:, :, None, :-1] == self._ids[:, None]).all(dim=-1)
        parents = same.int().argmax(dim=-1)
        prompts = torch.arange(self._shape[0], device=ids.device)[:, None]
        return self._totals[prompts, parents, ids[..., -1]]

    def _cut(self, totals: Float[Tensor, "prompt beam vocabulary"]) -> None:
        """Keep the last likelihood that stays a beam and the first that does not."""
        self._cuts.append(totals.flatten(1).topk(self._shape[1] + 1).values[:, -2:])

    def closest(self, floor: Float[Tensor, " prompt"]) -> Float[Tensor, " prompt"]:
        """The smallest gap at a cut whose lower side is at or above ``floor``; else infinity."""
        kept, dropped = torch.stack(self._cuts, dim=1).unbind(dim=-1)
        gaps = torch.where(dropped >= floor[:, None], kept - dropped, math.inf)
        return gaps.amin(dim=1)
