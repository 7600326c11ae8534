"""Generation: transformers' own loops, with each prompt's media encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from flamingo.model.assistance import Assistant
from flamingo.model.encoding import FlamingoMedia
from flamingo.model.media import FlamingoCache, MediaState, checked_cache

MEDIA_INPUTS = ("pixel_values", "vision_features", "media_latents")


class FlamingoGeneration(FlamingoMedia, GenerationMixin):
    """``generate`` for prompts with media.

    Media are encoded and projected before the first token, once per prompt whatever the number of
    beams, and live in the cache from then on. A new token belongs to the last medium of the
    prompt; ``<image>`` itself is never generated. Sequences end at the end-of-chunk token or at
    the LM's own end unless ``eos_token_id`` says otherwise.
    """

    language_model: PreTrainedModel
    generation_config: GenerationConfig

    @property
    def never_generated(self) -> list[int]:
        """``<image>``, and what the model's own generation config suppresses."""
        return self._suppressed(self.generation_config.suppress_tokens)

    def _suppressed(self, tokens: Sequence[int] | None) -> list[int]:
        return sorted({*(tokens or ()), self.config.image_token_id})

    def _option(self, name: str, given: GenerationConfig | None, kwargs: Mapping[str, Any]) -> Any:
        """As transformers merges them: the argument, the given config, the model's own."""
        if name in kwargs:
            return kwargs[name]
        own = getattr(given, name, None)
        return getattr(self.generation_config, name) if own is None else own

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' ``generate``, plus the media in one of their three forms.

        What neither ``kwargs`` nor ``generation_config`` say is taken from the model's own
        ``generation_config``. ``past_key_values`` goes on from an earlier call; ``input_ids`` is
        then the whole sequence, or with an ``attention_mask`` of the whole what is new in it, and
        media are the new ones; it stays as it is where a call fails before it reads anything. An
        ``assistant_model`` drafts tokens: a Flamingo, which gets the same media, or a bare LM
        of the same vocabulary.

        Raises:
            ValueError: as ``forward``, for caches that hold no media (static, quantised,
                offloaded, paged), and for strategies that transformers 5 keeps on its hub alone
                (contrastive, group beam and constrained search, DoLa) unless they are asked for
                with ``custom_generate`` and ``trust_remote_code=True``.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if input_ids is None:
            raise ValueError("input_ids: expected the prompts' token ids, got none")
        _refuse_other_caches(self._option("cache_implementation", generation_config, kwargs))
        cache = checked_cache(kwargs.pop("past_key_values", None))
        if cache is None and self._option("use_cache", generation_config, kwargs) is not False:
            cache = FlamingoCache(config=self.language_model.config)
        length, before = (0, None) if cache is None else (cache.get_seq_length(), cache.media)
        self._read_media(input_ids, cache, kwargs)
        suppressed = self._option("suppress_tokens", generation_config, kwargs)
        kwargs["suppress_tokens"] = self._suppressed(suppressed)
        try:
            return super().generate(input_ids, generation_config, **kwargs)  # type: ignore[misc]
        except BaseException:
            if cache is not None and cache.get_seq_length() == length:
                cache.media = before  # nothing was read: the caller's cache is as it was
            raise

    def _read_media(
        self, input_ids: Tensor, cache: FlamingoCache | None, kwargs: dict[str, Any]
    ) -> None:
        """Put the media in ``kwargs`` into ``cache``, which takes their place in there.

        Without a cache their latents do; an assistant keeps the media, which it reads by itself.
        """
        given = {name: kwargs.pop(name, None) for name in MEDIA_INPUTS}
        projected = kwargs.pop("projected_media", None)
        assistant = kwargs.get("assistant_model")
        if projected is not None and (cache is None or assistant is not None):
            raise ValueError(
                "projected_media: expected a cache and no assistant_model, which would read the "
                "media by itself"
            )
        if assistant is not None:
            kwargs["assistant_model"] = Assistant.of(assistant, self, given)
        attention_mask = kwargs.get("attention_mask")
        new_ids = _new_tokens(input_ids, attention_mask, cache)
        counts = self.is_image_token(new_ids, attention_mask).sum(dim=1)
        if cache is not None:
            state = MediaState.so_far(cache, input_ids)
            cache.media = self.with_new_media(state, counts, projected, *given.values())
            kwargs["past_key_values"] = cache
        elif (media := self.real_media(counts, *given.values())) is not None:
            latents, present = media
            padded = latents.new_zeros(*present.shape, *latents.shape[1:])
            padded[present] = latents
            kwargs["media_latents"] = padded


def _refuse_other_caches(implementation: str | None) -> None:
    if implementation is not None:
        raise ValueError(
            "cache_implementation: expected none (media are kept in a FlamingoCache, which grows), "
            f"got {implementation!r}"
        )


def _new_tokens(
    input_ids: Tensor, attention_mask: Tensor | None, cache: FlamingoCache | None
) -> Tensor:
    """What of ``input_ids`` the cache has not read, as transformers decides it."""
    if cache is None or (attention_mask is not None and attention_mask.shape != input_ids.shape):
        return input_ids
    return input_ids[:, cache.get_seq_length() :]


def default_generation_config(
    language_model_config: Any, end_of_chunk_token_id: int | None
) -> GenerationConfig:
    """Greedy; ends at the end of a chunk or where the LM itself ends; pads with the LM's end."""
    own = language_model_config.eos_token_id
    own = [own] if isinstance(own, int) else list(own or [])
    ends = [end_of_chunk_token_id, *own] if end_of_chunk_token_id is not None else own
    # CodeGen's configuration, for one, has no such field.
    pad = getattr(language_model_config, "pad_token_id", None)
    return GenerationConfig(
        bos_token_id=language_model_config.bos_token_id,
        eos_token_id=ends or None,
        pad_token_id=pad if pad is not None else (own[0] if own else end_of_chunk_token_id),
    )
