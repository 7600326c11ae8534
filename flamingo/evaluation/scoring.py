"""Answers from the model: greedy generation for open questions, likelihood for closed ones.

Predictions do not depend on the batch size. Padding and the shape of a batch change the last bits
of a logit, and in bfloat16 not only the very last; where two answers are closer than such an error
(``MARGIN``), the prompt is run again alone, without padding, and that result counts. Exact ties go
to the token of lower id, and to the candidate that is listed first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flamingo.data.sequence import special_token_id
from flamingo.evaluation.latents import MediaLatents
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.types import END_OF_CHUNK_TOKEN, Media, TokenizedSequence

MARGIN = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Nats between two answers below which the shape of a batch could decide, by compute precision."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says, and how sure it is.

    ``raw`` is the decoded output with special tokens (for ranking the chosen candidate), ``text``
    the answer in it. ``probability``: of the generated tokens up to and including the end of
    chunk; for ranking, the softmax over the candidates.
    """

    raw: str
    text: str
    probability: float


@dataclass(frozen=True)
class Reader:
    """A model with all that reading prompts needs. ``dtype`` is the precision of its compute."""

    model: FlamingoForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    latents: MediaLatents
    dtype: torch.dtype = torch.float32

    @property
    def margin(self) -> float:
        return MARGIN[self.dtype]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def inputs(
        self, rows: Sequence[tuple[Sequence[int], Sequence[Media]]], side: str
    ) -> dict[str, Tensor]:
        """Padded ids, mask and latents of ``rows`` for the model."""
        length = max(len(ids) for ids, _ in rows)
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)  # prepare_tokenizer sees to it
        input_ids = torch.full((len(rows), length), pad)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for row, (ids, _) in enumerate(rows):
            place = slice(length - len(ids), None) if side == "left" else slice(0, len(ids))
            input_ids[row, place] = torch.tensor(ids)
            mask[row, place] = 1
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
        if any(media for _, media in rows):
            inputs["media_latents"] = self.latents.rows([media for _, media in rows])
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}


# ---------------------------------------------------------------------------- open questions


def generate_answers(
    reader: Reader,
    prompts: Sequence[TokenizedSequence],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[tuple[int, Answer]]:
    """Greedy answers with the index of their prompt, as they come (longest prompts first).

    Each ends at the end of a chunk, at the LM's own end, or after ``max_new_tokens``. The latents
    of the prompts' media must be prepared.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].input_ids), i))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        answers = _generate(reader, [prompts[i] for i in part], max_new_tokens)
        for index, (answer, margin) in zip(part, answers, strict=True):
            if margin < reader.margin and len(part) > 1:
                ((answer, _),) = _generate(reader, [prompts[index]], max_new_tokens)
            yield index, answer


@torch.no_grad()
def _generate(
    reader: Reader, prompts: Sequence[TokenizedSequence], max_new_tokens: int
) -> list[tuple[Answer, float]]:
    """Answers of one batch, each with its smallest margin over the second-best token."""
    inputs: dict[str, Any] = reader.inputs([(p.input_ids, p.media) for p in prompts], side="left")
    ends = reader.model.generation_config.eos_token_id
    assert ends is not None
    ends = {ends} if isinstance(ends, int) else set(ends)
    with reader.autocast():
        output = reader.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits = torch.stack(output.logits, dim=1).float()
    logits[..., reader.model.config.image_token_id] = -math.inf  # as generation does
    likely = logits.log_softmax(dim=-1).topk(2, dim=-1).values.cpu()
    new = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return [_answer(reader, ids, row, ends) for ids, row in zip(new, likely, strict=True)]


def _answer(
    reader: Reader, ids: list[int], likely: Float[Tensor, "token two"], ends: set[int]
) -> tuple[Answer, float]:
    length = next((n for n, token in enumerate(ids, start=1) if token in ends), len(ids))
    raw = str(reader.tokenizer.decode(ids[:length]))
    last = length - 1 if ids[length - 1] in ends else length
    text = str(reader.tokenizer.decode(ids[:last])).strip()
    best, second = likely[:length].unbind(dim=1)
    return Answer(raw, text, best.sum().exp().item()), (best - second).min().item()


# ---------------------------------------------------------------------------- closed questions


def rank_candidates(
    reader: Reader,
    prompts: Sequence[TokenizedSequence],
    candidates: Sequence[Sequence[str]],
    *,
    batch_size: int,
) -> Iterator[tuple[int, Answer]]:
    """The likeliest of each prompt's ``candidates``, with the index of its prompt, as they come.

    A candidate is the text as it follows the prompt, leading space included. Its score is the sum
    of the log-likelihoods of all its tokens: whole words, not normalised by length (given the
    context, the words of an episode are equally likely a priori). The end of chunk is counted only
    if one of the candidates is the beginning of another: without it these would be overlapping
    events, and with it candidates of one token would need a second step for nothing. Latents must
    be prepared.
    """
    tokens = [_candidate_ids(reader.tokenizer, own) for own in candidates]
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].input_ids), i))
    for part in _batches(order, [len(_leaves(own)) for own in tokens], batch_size):
        scores = _score(reader, [prompts[i] for i in part], [tokens[i] for i in part])
        for index, own in zip(part, scores, strict=True):
            best, second = own.topk(2).values if len(own) > 1 else torch.tensor([0.0, -math.inf])
            if best - second < reader.margin and len(part) > 1:
                (own,) = _score(reader, [prompts[index]], [tokens[index]])
            chosen = int((own == own.max()).int().argmax())
            text = candidates[index][chosen]
            yield index, Answer(text, text.strip(), own.softmax(dim=0)[chosen].item())


def candidate_probabilities(
    reader: Reader, prompt: TokenizedSequence, candidates: Sequence[str]
) -> list[float]:
    """The softmax over the candidates' likelihoods for one prompt."""
    (scores,) = _score(reader, [prompt], [_candidate_ids(reader.tokenizer, candidates)])
    return scores.softmax(dim=0).tolist()


def _candidate_ids(
    tokenizer: PreTrainedTokenizerBase, candidates: Sequence[str]
) -> list[tuple[int, ...]]:
    if not candidates:
        raise ValueError("candidates: expected at least one, got none")
    ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in candidates]
    if len(set(ids)) < len(ids) or () in ids:
        raise ValueError(f"candidates: expected different, non-empty ones, got {list(candidates)}")
    overlapping = any(a != b and b[: len(a)] == a for a in ids for b in ids)
    end = (special_token_id(tokenizer, END_OF_CHUNK_TOKEN),) if overlapping else ()
    return [own + end for own in ids]


def _leaves(candidates: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """What must follow the prompt for all candidates to be scored, each in a row of its own.

    A candidate's last token is predicted, never read, and one row serves every candidate that
    begins like it: candidates of one token need the prompt alone.
    """
    read = sorted({own[:-1] for own in candidates}, key=lambda own: (-len(own), own))
    leaves: list[tuple[int, ...]] = []
    for own in read:
        if not any(leaf[: len(own)] == own for leaf in leaves):
            leaves.append(own)
    return leaves


def _batches(order: Sequence[int], rows: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Consecutive prompts of at most ``batch_size`` rows together (a prompt is never divided)."""
    part: list[int] = []
    total = 0
    for index in order:
        if part and total + rows[index] > batch_size:
            yield part
            part, total = [], 0
        part.append(index)
        total += rows[index]
    if part:
        yield part


@torch.no_grad()
def _score(
    reader: Reader,
    prompts: Sequence[TokenizedSequence],
    candidates: Sequence[Sequence[tuple[int, ...]]],
) -> list[Float[Tensor, " candidate"]]:
    """Summed log-likelihood of each prompt's candidates (float32, on the CPU)."""
    leaves = [(prompt, leaf) for prompt, own in zip(prompts, candidates, strict=True)
              for leaf in _leaves(own)]  # fmt: skip
    inputs = reader.inputs([(p.input_ids + leaf, p.media) for p, leaf in leaves], side="right")
    keep = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for row, (prompt, leaf) in enumerate(leaves):
        keep[row, len(prompt.input_ids) - 1 : len(prompt.input_ids) + len(leaf)] = True
    with reader.autocast():
        logits = reader.model(**inputs, logits_to_keep=keep).logits
    likelihoods = logits.float().log_softmax(dim=-1).cpu().split([len(f) + 1 for _, f in leaves])
    scores = []
    row = 0
    for own in candidates:
        by_leaf = dict(zip(_leaves(own), likelihoods[row:], strict=False))
        scores.append(torch.stack([_likelihood(candidate, by_leaf) for candidate in own]))
        row += len(by_leaf)
    return scores


def _likelihood(
    candidate: tuple[int, ...], by_leaf: dict[tuple[int, ...], Tensor]
) -> Float[Tensor, ""]:
    read = candidate[:-1]
    likelihoods = next(rows for leaf, rows in by_leaf.items() if leaf[: len(read)] == read)
    return likelihoods[range(len(candidate)), candidate].sum()
