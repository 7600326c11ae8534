"""A model by what a user has of it, a saved folder or a run, ready to read prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from flamingo.backbones.precision import resolve_dtype
from flamingo.backbones.vision import load_vision_encoder
from flamingo.choices import Precision
from flamingo.data.features import PixelLoader, uncached_loader
from flamingo.evaluation.latents import MediaLatents
from flamingo.evaluation.loading import compute_dtype, load_model
from flamingo.evaluation.scoring import Reader
from flamingo.model.auto import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.runs import load_run


def load_reader(pretrained: str, precision: Precision | None, device: torch.device) -> Reader:
    """A saved model, or the newest checkpoint of a run, on ``device``.

    A run's images are encoded as in its training. Raises ``ValueError`` for a model without a
    vision encoder.
    """
    if (Path(pretrained) / "config.yaml").is_file():
        run = load_run(pretrained)
        config, folder = run.config, run.checkpoint().path
        if precision is not None:
            config = replace(config, training=replace(config.training, precision=precision))
        encoder = load_vision_encoder(config.vision).to(device)
        model = load_model(folder, config, encoder, device)
        dtype = compute_dtype(config, device)
        media = uncached_loader(encoder, cache_features=config.data.cache_features)
    else:
        folder, dtype = pretrained, resolve_dtype(precision or Precision.auto, device)
        whole = None if dtype is torch.float32 else dtype
        model = FlamingoForConditionalGeneration.from_pretrained(folder, dtype=whole)
        if model.vision_encoder is None:
            raise ValueError(f"pretrained: expected a model with a vision encoder, got {folder!r}")
        model.to(device)  # type: ignore[arg-type]
        media = PixelLoader(model.vision_encoder.transform)
    tokenizer = FlamingoProcessor.from_pretrained(folder).tokenizer
    return Reader(model, tokenizer, MediaLatents(model, media), dtype)
