"""The contenders, built on one language model and one set of weights, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flamingo.backbones.attention import NAME, choose_attention
from flamingo.benchmarking.agreement import check_agreement
from flamingo.benchmarking.bare import BareLM
from flamingo.benchmarking.contender import CannotDo, Contender, Who
from flamingo.benchmarking.flamingo_pytorch import FlamingoPytorch
from flamingo.benchmarking.idefics import Idefics, build_idefics
from flamingo.benchmarking.open_flamingo import OpenFlamingo, build_open_flamingo
from flamingo.benchmarking.ours import Ours
from flamingo.benchmarking.work import FeatureShape, Tokens
from flamingo.interop.open_flamingo_export import CROSS_ATTENTION, RESAMPLER
from flamingo.model.flamingo import FlamingoForConditionalGeneration

GATE = 0.1
"""Of every gate, before its tanh: with closed gates all would agree whatever the images."""


@dataclass(frozen=True)
class World:
    """Who takes part, and why others do not."""

    contenders: dict[Who, Contender]
    absent: dict[Who, str]
    ours: FlamingoForConditionalGeneration
    tokens: Tokens
    agreement: dict[Who, float]
    """Largest difference from our logits, as a part of their spread, of those with our weights."""


def build_ours(
    language_model: PreTrainedModel, *, every: int, vision_dim: int, seed: int = 0
) -> FlamingoForConditionalGeneration:
    """OpenFlamingo's architecture on ``language_model``, with random weights and open gates."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FlamingoForConditionalGeneration.from_backbones(
            None,
            language_model,
            vision_dim=vision_dim,
            resampler=RESAMPLER,
            cross_attention=replace(CROSS_ATTENTION, every=every, gate_init=GATE),
        )


def build_world(
    language_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Sequence[Who],
    *,
    every: int,
    shape: FeatureShape,
    images: int,
    device: torch.device,
    dtype: torch.dtype,
) -> World:
    """Build ``wanted`` from ``language_model`` (fp32), each with a copy of it. The others' have the
    attention that transformers chooses, ours the one it has when we load it.

    ``images`` is the most that a row shows. A peer that cannot be had or does not import is absent,
    with the reason.

    Those with our weights are compared with ours in fp32 before all is moved to ``dtype``; raises
    ``ValueError`` where they differ by more than :data:`flamingo.benchmarking.agreement.TOLERANCE`.
    """
    own_lm = choose_attention(deepcopy(language_model))
    if own_lm.config._attn_implementation == NAME:
        language_model = deepcopy(language_model)
        language_model.set_attn_implementation("sdpa")
    ours = build_ours(own_lm, every=every, vision_dim=shape.dim)
    assert ours.config.image_token_id is not None
    assert ours.config.end_of_chunk_token_id is not None
    vocabulary = language_model.config.get_text_config().vocab_size
    tokens = Tokens(
        vocabulary,
        ours.config.image_token_id,
        ours.config.end_of_chunk_token_id,
        first=min(100, vocabulary // 4),
    )
    contenders: dict[Who, Contender] = {}
    absent: dict[Who, str] = {}
    agreement: dict[Who, float] = {}
    for who in wanted:
        try:
            match who:
                case Who.bare:
                    contenders[who] = BareLM(deepcopy(language_model), tokens)
                case Who.ours:
                    contenders[who] = Ours(ours, tokenizer, dtype)
                case Who.open_flamingo:
                    theirs = build_open_flamingo(ours, deepcopy(language_model))
                    peer = contenders[who] = OpenFlamingo(theirs, tokens)
                    own = Ours(ours, tokenizer, torch.float32)
                    agreement[who] = check_agreement(own, peer, tokens, shape)
                case Who.flamingo_pytorch:
                    contenders[who] = FlamingoPytorch(shape.dim, images)
                case Who.idefics:
                    theirs = build_idefics(language_model, every=every, vision_dim=shape.dim)
                    contenders[who] = Idefics(theirs, tokens)
        except (CannotDo, ImportError, ConnectionError) as reason:
            absent[who] = str(reason)
    for contender in contenders.values():
        contender.model.to(device, dtype)
    return World(contenders, absent, ours, tokens, agreement)
