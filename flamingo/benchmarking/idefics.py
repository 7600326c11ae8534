"""Idefics v1 of transformers as a contender, of our language model's sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import IdeficsConfig, IdeficsForVisionText2Text, LlamaConfig, PreTrainedModel

from flamingo.benchmarking.contender import CannotDo, Unable
from flamingo.benchmarking.few_shot import EvaluationWork
from flamingo.benchmarking.shared import decode_run, no_grad
from flamingo.benchmarking.timing import Run
from flamingo.benchmarking.work import PromptWork, Tokens, TrainingWork
from flamingo.interop.open_flamingo_export import RESAMPLER
from flamingo.model.flamingo import next_token_loss


@dataclass
class GivenOutput:
    """What Idefics reads of its vision encoder's output."""

    last_hidden_state: Tensor


class GivenFeatures(nn.Module):
    """Stands in for its vision encoder: the "pixels" are the features, ``(image, patch, dim)``."""

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool) -> GivenOutput:
        return GivenOutput(pixel_values)


def build_idefics(language_model: PreTrainedModel, *, every: int, vision_dim: int) -> Any:
    """Random weights of the same depth, widths and resampler.

    What its classes do not have: grouped keys and values (it has as many heads of them as of
    queries), gated blocks of another form than the LM's (its heads, its gated feed-forward), and an
    interval that does not divide the layers (an IndexError at the last block): it then gets the
    next one that does, and so fewer blocks.
    Raises ``CannotDo`` for a language model that is no LLaMA.
    """
    own = language_model.config
    if not isinstance(own, LlamaConfig):
        raise CannotDo(f"its language model is a LLaMA, not {own.model_type}")
    layers = own.num_hidden_layers
    interval = next(n for n in range(min(every, layers), layers + 1) if layers % n == 0)
    config = IdeficsConfig(
        vocab_size=own.vocab_size,
        additional_vocab_size=2,
        hidden_size=own.hidden_size,
        intermediate_size=own.intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=own.num_attention_heads,
        hidden_act=own.hidden_act,
        rms_norm_eps=own.rms_norm_eps,
        tie_word_embeddings=own.tie_word_embeddings,
        cross_layer_interval=interval,
        alpha_initializer="ones",
        freeze_lm_head=True,
        use_resampler=True,
        vision_config={"embed_dim": vision_dim, "num_hidden_layers": 0, "intermediate_size": 8},
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": RESAMPLER.num_latents,
            "resampler_depth": RESAMPLER.depth,
            "resampler_n_heads": RESAMPLER.heads,
            "resampler_head_dim": RESAMPLER.dim_head,
        },
    )
    model: Any = IdeficsForVisionText2Text(config)
    model.model.vision_model = GivenFeatures()
    return model


def own_medium(
    ids: Int[Tensor, "row token"], image: int, width: int
) -> Int[Tensor, "row token image"]:
    """1 where a token sees an image: the last before it, as its processor has it."""
    time = (ids == image).cumsum(dim=1)
    return (time[..., None] == torch.arange(1, width + 1, device=ids.device)).long()


class Idefics(Unable):
    """Its training step and ``generate``, as its users call them."""

    reason = "has no call that does this"
    note = (
        "random weights of the same sizes, with as many key-value heads as heads, and its own form "
        "of gated blocks, in an interval that divides the layers; features come in as pixels; the "
        "loss is taken outside, its own refuses additional tokens."
    )

    def __init__(self, model: Any, tokens: Tokens) -> None:
        self.model = model.eval()  # it has no dropout by default
        self._tokens = tokens

    @property
    def parts(self) -> list[nn.Module]:
        inner = self.model.model
        return [*inner.layers, *inner.gated_cross_attn_layers, inner.perceiver_resampler]

    def _inputs(self, ids: Tensor, mask: Tensor, features: Tensor) -> dict[str, Tensor]:
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "pixel_values": features[:, :, 0],
            "image_attention_mask": own_medium(ids, self._tokens.image, features.shape[1]),
        }

    def training_step(self, work: TrainingWork) -> Run:
        def call(_: object) -> None:
            self.model.zero_grad(set_to_none=True)
            mask = torch.ones_like(work.input_ids)
            inputs = self._inputs(work.input_ids, mask, work.features)
            # With labels it raises: its loss reshapes by a vocabulary without additional tokens.
            logits = self.model(**inputs, use_cache=False).logits
            next_token_loss(logits, work.labels).backward()

        return Run(call)

    def resampler(self, work: TrainingWork) -> Run:
        def call(_: object) -> None:
            self.model.zero_grad(set_to_none=True)
            self.model.model.perceiver_resampler(work.features.flatten(0, 2)).sum().backward()

        return Run(call)

    def prefill(self, work: PromptWork) -> Run:
        return Run(no_grad(lambda _: self._read(work)))

    def _read(self, work: PromptWork) -> Any:
        mask = torch.ones_like(work.input_ids)
        inputs = self._inputs(work.input_ids, mask, work.features)
        return self.model(**inputs, use_cache=True, logits_to_keep=1)

    def decode(self, work: PromptWork) -> Run:
        """As its ``generate`` goes on: latents are kept, their keys and values are not."""
        shown = work.features.shape[1]
        last = own_medium(work.input_ids, self._tokens.image, shown)[:, -1:]
        resampler = self.model.model.perceiver_resampler
        with torch.no_grad():
            latents = resampler(work.features.flatten(0, 2)).unflatten(0, (-1, shown))

        def step(**inputs: Any) -> Any:
            return self.model(**inputs, perceiver_embeddings=latents, image_attention_mask=last)

        return decode_run(lambda: self._read(work), step, work.input_ids, work.new_tokens)

    def generate(self, work: PromptWork) -> Run:
        mask = torch.ones_like(work.input_ids)

        def call(_: object) -> Tensor:
            return self._answer(work.input_ids, mask, work.features, work.new_tokens, work.beams)

        return Run(no_grad(call))

    def _answer(
        self, ids: Tensor, mask: Tensor, features: Tensor, new_tokens: int, beams: int
    ) -> Tensor:
        said = self.model.generate(
            **self._inputs(ids, mask, features),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            num_beams=beams,
            length_penalty=0.0,
            do_sample=False,
            pad_token_id=self._tokens.first,
        )
        return said[:, ids.shape[1] :]

    def evaluate(self, work: EvaluationWork) -> Run:
        def call(_: object) -> None:
            for batch in work.batches():
                self._answer(
                    batch.input_ids, batch.mask, batch.features, work.new_tokens, work.beams
                )

        return Run(no_grad(call), units=work.peer_queries)
