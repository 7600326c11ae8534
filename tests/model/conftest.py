"""Small models on random backbones, as the tests of this room need them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flamingo import FlamingoForConditionalGeneration
from flamingo.choices import MediaVisibility
from flamingo.config import CrossAttentionConfig, ResamplerConfig
from flamingo.testing import tiny_language_model

VISION_DIM = 24


def build(
    family: str = "llama",
    *,
    gate: float = 0.5,
    media: MediaVisibility = MediaVisibility.immediate,
    seed: int = 0,
    **language_options: object,
) -> FlamingoForConditionalGeneration:
    """A model with blocks before every second layer, gates open unless told otherwise."""
    torch.manual_seed(seed)
    return FlamingoForConditionalGeneration.from_backbones(
        None,
        tiny_language_model(family, **language_options),
        vision_dim=VISION_DIM,
        resampler=ResamplerConfig(depth=2, num_latents=4, heads=2, dim_head=8, max_frames=3),
        cross_attention=CrossAttentionConfig(
            every=2, heads=2, dim_head=8, gate_init=gate, media=media
        ),
    ).eval()


def prompt(
    model: FlamingoForConditionalGeneration, tokens: int, images: list[int], seed: int
) -> torch.Tensor:
    """Random token ids with ``<image>`` at the given positions."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 500, (1, tokens), generator=generator)
    ids[0, images] = model.config.image_token_id
    return ids


def features(rows: int, images: int, seed: int = 0, frames: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, images, frames, 9, VISION_DIM, generator=generator)


@pytest.fixture(name="build")
def build_fixture() -> Callable[..., FlamingoForConditionalGeneration]:
    return build
