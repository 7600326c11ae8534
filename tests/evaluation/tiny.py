"""A tiny model that reads images, and a tiny binding benchmark, for the tests of this room."""

from __future__ import annotations

import math
from functools import wraps
from typing import Any

import torch

from flamingo.config import CrossAttentionConfig, ResamplerConfig
from flamingo.data.concepts import Concept
from flamingo.data.features import EncodingLoader
from flamingo.data.sequence import tokenize
from flamingo.evaluation.benchmarks import BindingBenchmark
from flamingo.evaluation.latents import MediaLatents
from flamingo.evaluation.prompts import BINDING, prompt
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
from flamingo.types import MediaLoader, TokenizedSequence

WORDS = ["bax", "bex", "bix", "box", "bux", "dan", "fek"]


def tokenizer():
    return prepare_tokenizer(tiny_tokenizer(), VOCABULARY)


def load_media() -> MediaLoader:
    return EncodingLoader(tiny_vision_encoder())


def model(family: str = "llama", **overrides: Any) -> FlamingoForConditionalGeneration:
    torch.manual_seed(0)
    return FlamingoForConditionalGeneration.from_backbones(
        tiny_vision_encoder(),
        tiny_language_model(family, **overrides),
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


def prompts(reader: Reader) -> list[TokenizedSequence]:
    """Nine prompts of three lengths, with their latents prepared."""
    benchmark = binding(queries=3)
    sequences = [prompt(e, BINDING) for shots in (2, 0, 1) for e in benchmark.episodes(shots, 0)]
    result = [tokenize(s, reader.tokenizer, 500) for s in sequences]
    reader.latents.prepare(medium for p in result for medium in p.media)
    return result


def next_logits(reader: Reader, prompt: TokenizedSequence, ids: list[int]) -> torch.Tensor:
    """The logits behind one prompt and some ids: no padding, no cache, features and not latents."""
    media = {}
    if prompt.media:
        media["vision_features"] = load_media()(prompt.media)[None].float()
    with torch.no_grad():
        output = reader.model(
            input_ids=torch.tensor([[*prompt.input_ids, *ids]]), use_cache=False, **media
        )
    return output.logits[0, -1].float()


def log_likelihood(reader: Reader, prompt: TokenizedSequence, ids: list[int]) -> float:
    return sum(
        next_logits(reader, prompt, ids[:n]).log_softmax(0)[token].item()
        for n, token in enumerate(ids)
    )


class Spy:
    """What a model reads: rows, new tokens without padding, and whether a cache came along."""

    def __init__(self, reader: Reader) -> None:
        self.calls: list[tuple[int, int, bool]] = []
        reader.model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs) -> None:
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        tokens = ids.numel() if mask is None else int(mask[:, -ids.shape[1] :].sum())
        self.calls.append((len(ids), tokens, kwargs.get("past_key_values") is not None))

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens, _ in self.calls)


def add_noise(reader: Reader, monkeypatch, *, size: float, above: int) -> None:
    """Logits off by at most ``size``, the same at each run, in passes of more than ``above`` rows.

    As if the shape of a batch changed far more than the last bits.
    """
    original = reader.model._logits

    def noisy(hidden, keep):
        logits = original(hidden, keep)
        if len(hidden) <= above:
            return logits
        generator = torch.Generator().manual_seed(logits.numel())
        return logits + size * (2 * torch.rand(logits.shape, generator=generator) - 1)

    monkeypatch.setattr(reader.model, "_logits", noisy)


def make_bigram(reader: Reader, monkeypatch, following, together=None, *, above: int = 0) -> None:
    """Let the next token depend on the last one alone: ``following[last] = {next: probability}``.

    The rest is spread evenly over the other tokens. ``together`` holds instead in passes of more
    than ``above`` rows.
    """
    original = reader.model.forward

    @wraps(original)
    def forward(input_ids, **inputs):
        output = original(input_ids, **inputs)
        table = following if together is None or len(input_ids) <= above else together
        for row, last in enumerate(input_ids[:, -1].tolist()):
            known = table.get(last, {1: 0.9})  # the LM's own end
            rest = (1 - sum(known.values())) / (output.logits.shape[-1] - len(known))
            output.logits[row, -1] = math.log(rest)
            for token, probability in known.items():
                output.logits[row, -1, token] = math.log(probability)
        return output

    monkeypatch.setattr(reader.model, "forward", forward)
