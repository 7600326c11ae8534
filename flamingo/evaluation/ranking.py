"""Answers to closed questions: the likeliest of given candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flamingo.data.sequence import special_token_id
from flamingo.evaluation.batching import in_batches, longest_first
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.prefix import read_prompts
from flamingo.evaluation.scoring import Answer, Reader
from flamingo.types import END_OF_CHUNK_TOKEN, TokenizedSequence

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of a prompt as tokens, and what must be read for their scores.

    A candidate's last token is predicted, never read, and one leaf serves every candidate that
    begins like it: candidates of one token need the prompt alone (the empty leaf).
    """

    ids: tuple[Ids, ...]
    leaves: tuple[Ids, ...]
    """What must follow the prompt, each in a row of its own; the longest first."""
    leaf: tuple[int, ...]
    """Of each candidate, an index into ``leaves``."""

    @classmethod
    def sharing(cls, ids: Sequence[Ids]) -> Candidates:
        """As few leaves as possible."""
        read = sorted({own[:-1] for own in ids})
        serves: dict[Ids, Ids] = {}
        following: Ids = ()
        for own in reversed(read):  # sorted: what begins another begins the next one too
            begins = following[: len(own)] == own
            serves[own] = serves.get(following, own) if begins else own
            following = own
        leaves = sorted(set(serves.values()), key=lambda leaf: (-len(leaf), leaf))
        place = {leaf: index for index, leaf in enumerate(leaves)}
        return cls(tuple(ids), tuple(leaves), tuple(place[serves[own[:-1]]] for own in ids))

    def alone(self, indices: Sequence[int]) -> Candidates:
        """A choice of the candidates, each with a leaf of its own."""
        ids = tuple(self.ids[i] for i in indices)
        return Candidates(ids, tuple(own[:-1] for own in ids), tuple(range(len(ids))))

    @property
    def lengths(self) -> Float[Tensor, " candidate"]:
        return torch.tensor([len(own) for own in self.ids], dtype=torch.float64)


def rank_candidates(
    reader: Reader,
    prompts: Sequence[TokenizedSequence],
    candidates: Sequence[Sequence[str]],
    *,
    decoding: Decoding,
    batch_size: int,
) -> Iterator[tuple[int, Answer]]:
    """The likeliest of each prompt's ``candidates``, with the index of its prompt, as they come.

    A candidate is the text as it follows the prompt, leading space included. Its score is the sum
    of the log-likelihoods of all its tokens (whole words: given the context, the words of an
    episode are equally likely a priori), or their mean with ``decoding.normalize_by_length``
    (OpenFlamingo's for classes). ``decoding.end_of_chunk`` says whether the end of chunk is one of
    them where a candidate is the beginning of another; elsewhere it would need a second step for
    candidates of one token, for nothing.

    Every prompt is read once; what must be read of its candidates (all but their last tokens)
    follows from its cache, in at most ``batch_size`` rows at a time (halved where memory runs
    out). Latents must be prepared.

    The choice does not depend on the batch size, if the shape of a batch changes no sum by more
    than half of ``reader.margin``: candidates closer to the best than that are scored again, each
    alone behind the prompt alone, and these scores count. The other scores and the probability
    agree up to such an error.
    """
    known: dict[tuple[str, ...], Candidates] = {}
    for own in candidates:
        if tuple(own) not in known:
            known[tuple(own)] = _tokenize(reader.tokenizer, own, decoding)
    tokens = [known[tuple(own)] for own in candidates]

    def answers(part: Sequence[int], rows: int) -> list[Answer]:
        own = [tokens[i] for i in part]
        scores = _score(reader, [prompts[i] for i in part], own, decoding, rows)
        for place, index in enumerate(part):
            close = _contenders(scores[place], own[place], reader.margin, decoding)
            if len(close) > 1 and (len(part) > 1 or own[place].leaves != ((),)):
                again = own[place].alone(close)
                (alone,) = _score(reader, [prompts[index]], [again], decoding, rows=1)
                scores[place][close] = alone
        return [_answer(candidates[i], s) for i, s in zip(part, scores, strict=True)]

    def rows(part: Sequence[int]) -> int:
        return max(len(part), sum(len(tokens[i].leaves) for i in part))

    yield from in_batches(longest_first(prompts), batch_size, answers, rows)


def _answer(candidates: Sequence[str], scores: Float[Tensor, " candidate"]) -> Answer:
    chosen = int((scores == scores.max()).int().argmax())
    text = candidates[chosen]
    probability = scores.softmax(dim=0)[chosen].item()
    return Answer(text, text.strip(), probability, tuple(scores.tolist()))


def _contenders(
    scores: Float[Tensor, " candidate"], own: Candidates, margin: float, decoding: Decoding
) -> list[int]:
    """Candidates that another batch could put first, the best among them."""
    best = int(scores.argmax())
    allowed = torch.full_like(scores, margin)
    if decoding.normalize_by_length:  # the mean of n tokens is off by an n-th of what their sum is
        allowed = margin / own.lengths.clamp(max=own.lengths[best].item())
    return (scores > scores[best] - allowed).nonzero().flatten().tolist()


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, candidates: Sequence[str], decoding: Decoding
) -> Candidates:
    if not candidates:
        raise ValueError("candidates: expected at least one, got none")
    ids = [tuple(own) for own in tokenizer(list(candidates), add_special_tokens=False)["input_ids"]]
    if len(set(ids)) < len(ids) or () in ids:
        raise ValueError(f"candidates: expected different, non-empty ones, got {list(candidates)}")
    overlapping = any(b[: len(a)] == a for a, b in pairwise(sorted(ids)))
    if overlapping and decoding.end_of_chunk:
        ids = [(*own, special_token_id(tokenizer, END_OF_CHUNK_TOKEN)) for own in ids]
    return Candidates.sharing(ids)


@torch.no_grad()
def _score(
    reader: Reader,
    prompts: Sequence[TokenizedSequence],
    candidates: Sequence[Candidates],
    decoding: Decoding,
    rows: int,
) -> list[Float[Tensor, " candidate"]]:
    """Scores of each prompt's candidates, on the CPU.

    All prompts are read in one forward pass, then their leaves in passes of at most ``rows``.
    """
    flat = [(row, ids) for row, own in enumerate(candidates) for ids in own.ids]
    branches = _branches(candidates)
    with reader.autocast():
        prefix = read_prompts(
            reader, [(p.input_ids, p.media) for p in prompts], keep=bool(branches)
        )
        scores = _likelihoods(prefix.logits, [(row, ids[0]) for row, ids in flat])
        for start in range(0, len(branches), rows):
            part = branches[start : start + rows]
            logits = prefix.follow(reader, [b.prompt for b in part], [b.leaf for b in part])
            offsets = accumulate((len(b.leaf) for b in part), initial=0)
            read = [
                (number, (position, token))
                for offset, branch in zip(offsets, part, strict=False)
                for number in branch.serves
                for position, token in enumerate(flat[number][1][1:], start=offset)
            ]
            likely = _likelihoods(logits, [place for _, place in read])
            scores.index_add_(0, torch.tensor([number for number, _ in read]), likely)
    if decoding.normalize_by_length:
        scores /= torch.cat([own.lengths for own in candidates])
    return list(scores.split([len(own.ids) for own in candidates]))


@dataclass(frozen=True, slots=True)
class _Branch:
    """A leaf behind a prompt (its number), and the candidates it serves, counted over all."""

    prompt: int
    leaf: Ids
    serves: list[int]


def _branches(candidates: Sequence[Candidates]) -> list[_Branch]:
    """All that must be read behind the prompts, prompt by prompt."""
    branches: list[_Branch] = []
    first = 0
    for prompt, own in enumerate(candidates):
        by_leaf = [_Branch(prompt, leaf, []) for leaf in own.leaves]
        for number, leaf in enumerate(own.leaf, start=first):
            by_leaf[leaf].serves.append(number)
        branches += [branch for branch in by_leaf if branch.leaf]
        first += len(own.ids)
    return branches


def _likelihoods(
    logits: Float[Tensor, "position vocabulary"], places: Sequence[tuple[int, int]]
) -> Float[Tensor, " place"]:
    """Log-likelihoods of tokens at (position, token), in float64 on the CPU."""
    positions, tokens = torch.tensor(places, device=logits.device).unbind(dim=1)
    return logits.float().log_softmax(dim=-1)[positions, tokens].double().cpu()
