"""Generation: transformers' own loops, with each prompt's media encoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from flamingo.model.media import FlamingoCache, MediaState

if TYPE_CHECKING:
    from flamingo.model.flamingo import FlamingoForConditionalGeneration

MEDIA_INPUTS = ("pixel_values", "vision_features", "media_latents")


class FlamingoGeneration:
    """``generate`` for prompts with media.

    Media are encoded and projected before the first token, once per prompt whatever the number of
    beams, and live in the cache from then on. A new token belongs to the last medium of the
    prompt; ``<image>`` itself is never generated. Sequences end at the end-of-chunk token or at
    the LM's own end unless ``eos_token_id`` says otherwise.

    Stands before transformers' ``GenerationMixin`` among the model's bases.
    """

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self: FlamingoForConditionalGeneration,  # type: ignore[misc]
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' ``generate``, plus the media in one of their three forms."""
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if input_ids is None:
            raise ValueError("input_ids: expected the prompts' token ids, got none")
        options = generation_config or self.generation_config
        given = {name: kwargs.pop(name, None) for name in MEDIA_INPUTS}
        attention_mask = kwargs.get("attention_mask")
        use_cache = kwargs.get("use_cache", options.use_cache)
        cache = kwargs.pop("past_key_values", None)
        if cache is None and use_cache is not False:
            cache = FlamingoCache(config=self.language_model.config)

        cached = 0 if cache is None else cache.get_seq_length()
        is_image = self.is_image_token(input_ids[:, cached:], attention_mask)
        media = self.real_media(is_image.sum(dim=1), *given.values())
        if cache is not None:
            state = cache.media or MediaState.empty(len(input_ids), input_ids.device)
            cache.media = state if media is None else state.append(*media, self._blocks)
            kwargs["past_key_values"] = cache
        elif media is not None:
            latents, present = media
            padded = latents.new_zeros(*present.shape, *latents.shape[1:])
            padded[present] = latents
            kwargs["media_latents"] = padded

        suppressed = kwargs.pop("suppress_tokens", None) or options.suppress_tokens or []
        kwargs["suppress_tokens"] = sorted({*suppressed, self.config.image_token_id})
        return super().generate(input_ids, generation_config, **kwargs)  # type: ignore[misc]


def default_generation_config(
    language_model_config: Any, end_of_chunk_token_id: int | None
) -> GenerationConfig:
    """Greedy; ends at the end of a chunk or where the LM itself ends; pads with the LM's end."""
    own = language_model_config.eos_token_id
    own = [own] if isinstance(own, int) else list(own or [])
    ends = [end_of_chunk_token_id, *own] if end_of_chunk_token_id is not None else own
    pad = language_model_config.pad_token_id
    return GenerationConfig(
        bos_token_id=language_model_config.bos_token_id,
        eos_token_id=ends or None,
        pad_token_id=pad if pad is not None else (own[0] if own else end_of_chunk_token_id),
    )
