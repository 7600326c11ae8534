"""Log-likelihoods of given continuations, whatever they are: the choices of other harnesses.

:mod:`~flamingo.evaluation.ranking` compares candidates that share a prompt; here each continuation
gets its own number, and whether greedy search would say it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flamingo.evaluation.batching import in_batches, longest_first
from flamingo.evaluation.prefix import Prefix, read_prompts
from flamingo.evaluation.scoring import Reader
from flamingo.types import TokenizedSequence


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of a continuation: its log-likelihood in nats, and whether greedy search would say it."""

    total: float
    greedy: bool


@torch.no_grad()
def likelihoods(
    reader: Reader,
    prompts: Sequence[TokenizedSequence],
    continuations: Sequence[Sequence[tuple[int, ...]]],
    *,
    batch_size: int,
) -> Iterator[tuple[int, list[Likelihood]]]:
    """Each prompt's ``continuations`` (ids, at least one each), with the index of the prompt.

    A prompt is read once, what follows it from its cache, in at most ``batch_size`` rows at a time
    (halved where memory runs out). The batch size changes no more than the last bits of a total.
    Latents must be prepared.
    """

    def scores(part: Sequence[int], rows: int) -> list[list[Likelihood]]:
        with reader.autocast():
            own = [(prompts[i].input_ids, prompts[i].media) for i in part]
            prefix = read_prompts(reader, own, keep=True)
            return [
                [
                    likelihood
                    for start in range(0, len(continuations[i]), rows)
                    for likelihood in _follow(
                        reader, prefix, row, continuations[i][start : start + rows]
                    )
                ]
                for row, i in enumerate(part)
            ]

    yield from in_batches(longest_first(prompts), batch_size, scores)


def _follow(
    reader: Reader, prefix: Prefix, row: int, continuations: Sequence[tuple[int, ...]]
) -> Iterator[Likelihood]:
    """Of what follows prompt number ``row``; the last token of each is predicted, never read."""
    read = [ids[:-1] for ids in continuations if len(ids) > 1]
    first = prefix.logits[row : row + 1]
    logits = prefix.follow(reader, [row] * len(read), read) if read else first[:0]
    tails = logits.split([len(ids) - 1 for ids in continuations])
    for ids, tail in zip(continuations, tails, strict=True):
        yield _likelihood(torch.cat([first, tail]), ids, reader.model.never_generated)


def _likelihood(
    logits: Float[Tensor, "token vocabulary"], ids: tuple[int, ...], never: list[int]
) -> Likelihood:
    logits, chosen = logits.float(), torch.tensor(ids, device=logits.device)
    total = logits.log_softmax(dim=-1).gather(1, chosen[:, None]).double().sum().item()
    said = logits.index_fill(1, torch.tensor(never, device=logits.device), -math.inf)
    return Likelihood(total, bool((said.argmax(dim=-1) == chosen).all()))
