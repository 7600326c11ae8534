"""A trained checkpoint, ready to answer: in the precision it was trained in."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from flamingo.backbones.language import load_language_model
from flamingo.backbones.precision import resolve_dtype
from flamingo.backbones.vision import VisionEncoder
from flamingo.config import RunConfig
from flamingo.model.auto import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.types import END_OF_CHUNK_TOKEN


def compute_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """The precision of the forward pass: that of training."""
    return resolve_dtype(config.training.precision, device)


def load_tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a checkpoint, special tokens included.

    Raises ``ValueError`` for a model whose prompts are written in another way than ours.
    """
    tokenizer = FlamingoProcessor.from_pretrained(checkpoint).tokenizer
    if END_OF_CHUNK_TOKEN not in tokenizer.get_vocab():
        raise ValueError(
            f"{checkpoint}: expected a model that reads {END_OF_CHUNK_TOKEN} behind each "
            "demonstration, got one without it: IDEFICS is not evaluated here (its prompts: "
            "flamingo/interop/idefics_processor.py)"
        )
    return tokenizer


def load_model(
    checkpoint: Path, config: RunConfig, encoder: VisionEncoder, device: torch.device
) -> FlamingoForConditionalGeneration:
    """The model of ``checkpoint`` on ``device``: the frozen LM in the precision of the forward
    pass, what was trained in its own. Raises ``ValueError`` if a backbone is another one now."""
    model = FlamingoForConditionalGeneration.from_pretrained(
        checkpoint,
        language_model=load_language_model(config.language, compute_dtype(config, device)),
        vision_encoder=encoder,
    )
    model.to(device)  # type: ignore[arg-type]
    return model.eval()
