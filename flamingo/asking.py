"""A run opened to be asked: by hand (experiments/ask.py) or on the demo page, with one answer.

An open question is decoded as the run's evaluation decodes questions about images: greedily, unless
``evaluation.protocol`` or ``evaluation.beams`` of its configuration say otherwise. Candidates are
ranked as it ranks them. The prompt is the text as it is typed (:data:`QUESTION`), under every
protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from flamingo.backbones.precision import available_device
from flamingo.backbones.vision import VisionEncoder, load_vision_encoder
from flamingo.data.features import uncached_loader
from flamingo.data.sequence import tokenize
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.generation import generate_answers
from flamingo.evaluation.latents import MediaLatents
from flamingo.evaluation.loading import (
    compute_dtype,
    load_model,
    load_tokenizer,
)
from flamingo.evaluation.prompts import QUESTION, Episode, prompt
from flamingo.evaluation.ranking import rank_candidates
from flamingo.evaluation.scoring import Answer, Reader
from flamingo.evaluation.tasks import Kind, adapted, task
from flamingo.evaluation_config import EvaluationConfig
from flamingo.runs import Run
from flamingo.types import TokenizedSequence

CANDIDATES_AT_ONCE = 16


@dataclass(frozen=True)
class Respondent:
    """A run's model, ready to be asked."""

    reader: Reader
    encoder: VisionEncoder
    max_tokens: int
    """A longer prompt is refused."""
    decoding: Decoding
    """Of open answers, and of the scores of candidates."""


def open_respondent(
    run: Run, step: int | None = None, *, max_new_tokens: int | None = None
) -> Respondent:
    """The checkpoint of ``step`` (default: the newest) on the GPU if there is one.

    ``max_new_tokens`` of an open answer; default: as in the run's evaluation. Raises ``ValueError``
    where there is no such checkpoint or a backbone has changed.
    """
    checkpoint = run.checkpoint(step).path
    device = available_device()
    tokenizer = load_tokenizer(checkpoint)
    encoder = load_vision_encoder(run.config.vision).to(device)
    model = load_model(checkpoint, run.config, encoder, device)
    media = uncached_loader(encoder, cache_features=run.config.data.cache_features)
    latents = MediaLatents(model, media)
    reader = Reader(model, tokenizer, latents, compute_dtype(run.config, device))
    evaluation = run.config.evaluation
    decoding = decoding_of(evaluation, max_new_tokens)
    return Respondent(reader, encoder, evaluation.max_tokens, decoding)


def decoding_of(evaluation: EvaluationConfig, max_new_tokens: int | None = None) -> Decoding:
    """How ``evaluation`` decodes answers to questions about images, within ``max_new_tokens``."""
    own = adapted(task(Kind.vqa, evaluation.protocol), evaluation).decoding
    return own if max_new_tokens is None else replace(own, max_new_tokens=max_new_tokens)


def read(respondent: Respondent, episode: Episode) -> TokenizedSequence:
    """The prompt of ``episode``, its images encoded.

    Raises ``ValueError`` for one above ``respondent.max_tokens``, for one beyond the positions that
    the language model has learned (with its answer) and for special tokens in a text.
    """
    reader = respondent.reader
    asked = tokenize(prompt(episode, QUESTION), reader.tokenizer, respondent.max_tokens)
    words = [QUESTION.answer_text(word) for word in episode.candidates]
    lengths = [len(reader.tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words]
    reader.check_positions(asked, max(lengths, default=respondent.decoding.max_new_tokens))
    reader.latents.prepare(asked.media)
    return asked


def open_answer(respondent: Respondent, asked: TokenizedSequence) -> Answer:
    """What the model says to ``asked``, by ``respondent.decoding``."""
    ((_, answer),) = generate_answers(
        respondent.reader, [asked], decoding=respondent.decoding, batch_size=1
    )
    return answer


def candidate_probabilities(
    respondent: Respondent, asked: TokenizedSequence, candidates: Sequence[str]
) -> tuple[float, ...]:
    """The softmax over the scores of whole ``candidates``, in their order.

    Raises ``ValueError`` for candidates that are empty or equal.
    """
    words = [QUESTION.answer_text(word) for word in candidates]
    ((_, answer),) = rank_candidates(
        respondent.reader,
        [asked],
        [words],
        decoding=respondent.decoding,
        batch_size=CANDIDATES_AT_ONCE,
    )
    return tuple(torch.tensor(answer.scores, dtype=torch.float64).softmax(dim=0).tolist())
