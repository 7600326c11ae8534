"""One question to a run: the answer, what else it might have said, and where it looked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flamingo.asking import Respondent, candidate_probabilities, open_answer, read
from flamingo.data.features import EncodingLoader, content_hash
from flamingo.evaluation.prompts import QUESTION, Episode, Item
from flamingo.evaluation.scoring import Reader
from flamingo.model.attention_maps import attention_maps
from flamingo.model.cross_attention import GatedCrossAttentionBlock
from flamingo.types import ImageRef, Media, TokenizedSequence


@dataclass(frozen=True, slots=True)
class Shown:
    """An RGB image with a question; a demonstration has the answer too."""

    image: Image.Image
    question: str
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Something that the model might say. ``ids`` are its tokens without their end."""

    text: str
    probability: float
    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Answered:
    """What came of a question."""

    said: Alternative
    """The answer."""
    alternatives: tuple[Alternative, ...]
    """Likeliest first, all different, the answer among them."""
    attention: Float[Tensor, "layer height width"]
    """Of the text that predicts the answer's tokens, over the patches of the query's image, in
    each gated block; mean of heads and tokens."""
    layers: tuple[int, ...]
    """The decoder layers that the gated blocks stand before."""
    gates: tuple[float, ...]
    """Of each gated block how much of its attention is let through: the mean of ``|tanh(gate)|``,
    1 without gates."""

    @property
    def text(self) -> str:
        return self.said.text


def answer(
    respondent: Respondent,
    demonstrations: Sequence[Shown],
    query: Shown,
    *,
    candidates: Sequence[str] = (),
    alternatives: int = 5,
) -> Answered:
    """Ask about ``query.image``, with ``demonstrations`` before it; the last one stands next to it.

    The answer is that of :mod:`flamingo.asking`. With ``candidates`` these are the alternatives:
    probabilities are the softmax of the scores of whole answers, and sum to 1. Without,
    ``alternatives`` beams are searched, and stand beside the answer: the probability of each is
    that of its tokens up to and including their end (or the first
    ``respondent.decoding.max_new_tokens``), so that what is missing to 1 is anything else. Those
    that read alike are added up, also those that differ in their end alone: the end of chunk or
    the language model's own. One of them can be likelier than the answer: a greedy answer
    takes the likeliest token at each step, which need not lead to the likeliest whole.

    Raises ``ValueError`` for a prompt above ``respondent.max_tokens``, special tokens in a text,
    and candidates that are empty or equal.
    """
    reader = respondent.reader
    shown = [_item(own) for own in demonstrations]
    asked = read(
        respondent,
        Episode(_item(query), tuple(shown), len(shown), candidates=tuple(candidates)),
    )
    if candidates:
        found = _ranked(respondent, asked, candidates)
        said = found[0]
    else:
        own = open_answer(respondent, asked)
        said = Alternative(own.text, own.probability, own.ids)
        beams = _beams(respondent, asked, max(1, alternatives))
        found = _together((beams | {own.ids + own.end: said}).values())
    attention, layers = _attention(respondent, asked, said.ids)
    gates = tuple(_gate(reader, layer) for layer in layers)
    return Answered(said, found, attention, layers, gates)


def _item(shown: Shown) -> Item:
    def image() -> Image.Image:
        return shown.image

    key = content_hash(shown.image).hex()
    media = Media((ImageRef(f"demo/{key}", image),))
    return Item(key, media, shown.question, shown.answer)


def _ranked(
    respondent: Respondent, asked: TokenizedSequence, candidates: Sequence[str]
) -> tuple[Alternative, ...]:
    probabilities = candidate_probabilities(respondent, asked, candidates)
    words = [QUESTION.answer_text(word) for word in candidates]
    ids = respondent.reader.tokenizer(words, add_special_tokens=False)["input_ids"]
    found = zip(candidates, probabilities, map(tuple, ids), strict=True)
    return _likeliest_first(Alternative(*one) for one in found)


@torch.no_grad()
def _beams(
    respondent: Respondent, asked: TokenizedSequence, count: int
) -> dict[tuple[int, ...], Alternative]:
    """The ``count`` likeliest answers that beam search finds, without a length penalty; by their
    tokens with the end, if they have one."""
    reader = respondent.reader
    inputs = reader.inputs([(asked.input_ids, asked.media)])
    with reader.autocast():
        output = reader.model.generate(
            **inputs,
            max_new_tokens=respondent.decoding.max_new_tokens,
            num_beams=max(2, count),
            num_return_sequences=count,
            length_penalty=0.0,  # a beam's score is the sum of its log-likelihoods
            do_sample=False,
            renormalize_logits=True,  # without the tokens that are never generated
            output_scores=True,
            return_dict_in_generate=True,
        )
    ends = reader.model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    found = {}
    beams = output.sequences[:, len(asked.input_ids) :].tolist()
    for ids, score in zip(beams, output.sequences_scores.tolist(), strict=True):
        end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        text = str(reader.tokenizer.decode(ids[:end])).strip()
        found[tuple(ids[: end + 1])] = Alternative(text, math.exp(score), tuple(ids[:end]))
    return found


def _together(found: Iterable[Alternative]) -> tuple[Alternative, ...]:
    """Those that read alike are one, with the tokens of the likeliest."""
    by_text: dict[str, Alternative] = {}
    for own in _likeliest_first(found):
        same = by_text.get(own.text, Alternative(own.text, 0.0, own.ids))
        by_text[own.text] = replace(same, probability=same.probability + own.probability)
    return _likeliest_first(by_text.values())


def _likeliest_first(found: Iterable[Alternative]) -> tuple[Alternative, ...]:
    return tuple(sorted(found, key=lambda own: -own.probability))


def _attention(
    respondent: Respondent, asked: TokenizedSequence, said: Sequence[int]
) -> tuple[Float[Tensor, "layer height width"], tuple[int, ...]]:
    """Of the positions that predict the tokens of ``said`` (or the end, if nothing was said)."""
    reader = respondent.reader
    like = reader.model.resampler.feature_mean
    features = EncodingLoader(respondent.encoder)(asked.media)[None].to(like.device, like.dtype)
    ids = torch.tensor([[*asked.input_ids, *said]], device=reader.device)
    first = len(asked.input_ids) - 1
    positions = range(first, first + max(1, len(said)))
    with reader.autocast():
        maps = attention_maps(reader.model, ids, tokens=positions, vision_features=features)
    own = torch.stack([maps.over_patches(position) for position in positions])
    return own.float().mean(dim=0), maps.layers


def _gate(reader: Reader, layer: int) -> float:
    block = cast(GatedCrossAttentionBlock, reader.model.cross_attention[str(layer)])
    gate = block.attention_gate
    return 1.0 if gate is None else gate.detach().float().tanh().abs().mean().item()
