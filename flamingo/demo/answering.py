"""One question to a run: the answer, what else it might have said, and where it looked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flamingo.backbones.vision import VisionEncoder, load_vision_encoder
from flamingo.data.features import EncodingLoader, content_hash
from flamingo.data.sequence import tokenize
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.latents import MediaLatents
from flamingo.evaluation.loading import (
    compute_dtype,
    evaluation_device,
    load_model,
    load_tokenizer,
)
from flamingo.evaluation.prompts import QUESTION, Episode, Item, prompt
from flamingo.evaluation.ranking import rank_candidates
from flamingo.evaluation.scoring import Reader
from flamingo.model.attention_maps import attention_maps
from flamingo.model.cross_attention import GatedCrossAttentionBlock
from flamingo.runs import Run
from flamingo.types import ImageRef, Media, TokenizedSequence

CANDIDATES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Shown:
    """An RGB image with a question; a demonstration has the answer too."""

    image: Image.Image
    question: str
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Something that the model might say. ``ids`` are its tokens without the end of chunk."""

    text: str
    probability: float
    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Answered:
    """What came of a question."""

    alternatives: tuple[Alternative, ...]
    """Likeliest first, all different; the first is the answer."""
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
        return self.alternatives[0].text


@dataclass(frozen=True)
class Respondent:
    """A run's model, ready to be asked."""

    reader: Reader
    encoder: VisionEncoder
    max_tokens: int
    """A longer prompt is refused."""


def open_respondent(run: Run, step: int | None = None) -> Respondent:
    """The checkpoint of ``step`` (default: the newest) on the GPU if there is one.

    Raises ``ValueError`` where there is no such checkpoint or a backbone has changed.
    """
    checkpoint = run.checkpoint(step).path
    device = evaluation_device()
    tokenizer = load_tokenizer(checkpoint)
    encoder = load_vision_encoder(run.config.vision).to(device)
    model = load_model(checkpoint, run.config, encoder, device)
    latents = MediaLatents(model, EncodingLoader(encoder))
    reader = Reader(model, tokenizer, latents, compute_dtype(run.config, device))
    return Respondent(reader, encoder, run.config.evaluation.max_tokens)


def answer(
    respondent: Respondent,
    demonstrations: Sequence[Shown],
    query: Shown,
    *,
    candidates: Sequence[str] = (),
    alternatives: int = 5,
    max_new_tokens: int = 10,
) -> Answered:
    """Ask about ``query.image``, with ``demonstrations`` before it; the last one stands next to it.

    With ``candidates`` these are ranked as in an evaluation: probabilities are the softmax of the
    likelihoods of whole answers, and sum to 1. Without, ``alternatives`` beams are searched: the
    probability of each is that of its tokens up to and including the end of chunk (or the first
    ``max_new_tokens``), so that what is missing to 1 is anything else. Beams that read alike are
    added up.

    Raises ``ValueError`` for a prompt above ``respondent.max_tokens``, special tokens in a text,
    and candidates that are empty or equal.
    """
    reader = respondent.reader
    shown = [_item(own) for own in demonstrations]
    episode = Episode(_item(query), tuple(shown), len(shown), candidates=tuple(candidates))
    asked = tokenize(prompt(episode, QUESTION), reader.tokenizer, respondent.max_tokens)
    reader.latents.prepare(asked.media)
    if candidates:
        found = _ranked(reader, asked, candidates)
    else:
        found = _beams(reader, asked, max(1, alternatives), max_new_tokens)
    attention, layers = _attention(respondent, asked, found[0].ids)
    return Answered(found, attention, layers, tuple(_gate(reader, layer) for layer in layers))


def _item(shown: Shown) -> Item:
    def image() -> Image.Image:
        return shown.image

    key = content_hash(shown.image).hex()
    media = Media((ImageRef(f"demo/{key}", image),))
    return Item(key, media, shown.question, shown.answer)


def _ranked(
    reader: Reader, asked: TokenizedSequence, candidates: Sequence[str]
) -> tuple[Alternative, ...]:
    words = [QUESTION.answer_text(word) for word in candidates]
    ((_, ranking),) = rank_candidates(
        reader, [asked], [words], decoding=Decoding(), batch_size=CANDIDATES_AT_ONCE
    )
    ids = reader.tokenizer(words, add_special_tokens=False)["input_ids"]
    probabilities = torch.tensor(ranking.scores, dtype=torch.float64).softmax(dim=0).tolist()
    found = zip(candidates, probabilities, map(tuple, ids), strict=True)
    return _likeliest_first([Alternative(*one) for one in found])


@torch.no_grad()
def _beams(
    reader: Reader, asked: TokenizedSequence, count: int, max_new_tokens: int
) -> tuple[Alternative, ...]:
    """The ``count`` likeliest answers that beam search finds, without a length penalty."""
    inputs = reader.inputs([(asked.input_ids, asked.media)])
    with reader.autocast():
        output = reader.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
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
    found: dict[str, Alternative] = {}
    beams = output.sequences[:, len(asked.input_ids) :].tolist()
    for ids, score in zip(beams, output.sequences_scores.tolist(), strict=True):
        end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        text = str(reader.tokenizer.decode(ids[:end])).strip()
        same = found.get(text, Alternative(text, 0.0, tuple(ids[:end])))
        found[text] = Alternative(text, same.probability + math.exp(score), same.ids)
    return _likeliest_first(list(found.values()))


def _likeliest_first(found: list[Alternative]) -> tuple[Alternative, ...]:
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
