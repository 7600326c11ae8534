"""A tiny model that reads images, and a tiny binding benchmark, for the tests of this room."""

from __future__ import annotations

import torch

from flamingo.config import CrossAttentionConfig, ResamplerConfig
from flamingo.data.concepts import Concept
from flamingo.data.features import EncodingLoader
from flamingo.evaluation.benchmarks import BindingBenchmark
from flamingo.evaluation.latents import MediaLatents
from flamingo.evaluation.scoring import Reader
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.processor import prepare_tokenizer
from flamingo.testing import (
    VOCABULARY,
    synthetic_images,
    tiny_language_model,
    tiny_tokenizer,
    tiny_vision_encoder,
)
from flamingo.types import MediaLoader

WORDS = ["bax", "bex", "bix", "box", "bux", "dan", "fek"]


def tokenizer():
    return prepare_tokenizer(tiny_tokenizer(), VOCABULARY)


def load_media() -> MediaLoader:
    return EncodingLoader(tiny_vision_encoder())


def model(family: str = "llama") -> FlamingoForConditionalGeneration:
    torch.manual_seed(0)
    return FlamingoForConditionalGeneration.from_backbones(
        tiny_vision_encoder(),
        tiny_language_model(family),
        resampler=ResamplerConfig(depth=1, num_latents=2, heads=2, dim_head=8, max_frames=1),
        cross_attention=CrossAttentionConfig(every=2, heads=2, dim_head=8, gate_init=1.0),
    ).eval()


def reader(family: str = "llama", dtype: torch.dtype = torch.float32) -> Reader:
    own = model(family)
    return Reader(own, tokenizer(), MediaLatents(own, load_media()), dtype)


def binding(
    ways: int = 2, queries: int = 6, views: int = 4, shots=(0, 1, 2), seeds=(0,)
) -> BindingBenchmark:
    images = synthetic_images(12 * views)
    concepts = [Concept(images[i].key.split("/")[1], tuple(images[i::12])) for i in range(12)]
    return BindingBenchmark(
        name=f"synthetic_{ways}_ways",
        title=f"Synthetic, {ways} ways",
        concepts=concepts,
        words=WORDS,
        ways=ways,
        queries=queries,
        seed=0,
        seeds=list(seeds),
        shots=list(shots),
    )
