"""Generation: transformers' own loops, with each prompt's media encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from flamingo.model.assistance import Assistant
from flamingo.model.media import FlamingoCache, MediaState, check_projected

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

    @property
    def never_generated(self: FlamingoForConditionalGeneration) -> list[int]:  # type: ignore[misc]
        """``<image>``, and what the model's own generation config suppresses."""
        return self._suppressed(self.generation_config.suppress_tokens)

    def _suppressed(
        self: FlamingoForConditionalGeneration,  # type: ignore[misc]
        tokens: Sequence[int] | None,
    ) -> list[int]:
        return sorted({*(tokens or ()), self.config.image_token_id})

    def _option(
        self: FlamingoForConditionalGeneration,  # type: ignore[misc]
        name: str,
        given: GenerationConfig | None,
        kwargs: Mapping[str, Any],
    ) -> Any:
        """As transformers merges them: the argument, the given config, the model's own."""
        if name in kwargs:
            return kwargs[name]
        own = getattr(given, name, None)
        return getattr(self.generation_config, name) if own is None else own

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self: FlamingoForConditionalGeneration,  # type: ignore[misc]
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
        given = {name: kwargs.pop(name, None) for name in MEDIA_INPUTS}
        projected = kwargs.pop("projected_media", None)
        if kwargs.get("assistant_model") is not None:
            kwargs["assistant_model"] = Assistant.of(kwargs["assistant_model"], self, given)
        attention_mask = kwargs.get("attention_mask")
        use_cache = self._option("use_cache", generation_config, kwargs)
        cache = kwargs.pop("past_key_values", None)
        if cache is None and use_cache is not False:
            cache = FlamingoCache(config=self.language_model.config)

        new_ids = _new_tokens(input_ids, attention_mask, cache)
        length, before = (0, None) if cache is None else (cache.get_seq_length(), cache.media)
        counts = self.is_image_token(new_ids, attention_mask).sum(dim=1)
        media = self.real_media(counts, *given.values())
        if projected is not None:
            check_projected(projected, counts, list(given.values()))
            if cache is None or kwargs.get("assistant_model") is not None:
                raise ValueError(
                    "projected_media: expected a cache and no assistant_model, which would read "
                    "the media by itself"
                )
        if cache is not None:
            state = cache.media or MediaState.empty(len(input_ids), input_ids.device)
            if projected is not None:
                state = state.append_projected(projected)
            cache.media = state if media is None else state.append(*media, self._blocks)
            kwargs["past_key_values"] = cache
        elif media is not None:
            latents, present = media
            padded = latents.new_zeros(*present.shape, *latents.shape[1:])
            padded[present] = latents
            kwargs["media_latents"] = padded

        suppressed = self._option("suppress_tokens", generation_config, kwargs)
        kwargs["suppress_tokens"] = self._suppressed(suppressed)
        try:
            return super().generate(input_ids, generation_config, **kwargs)  # type: ignore[misc]
        except BaseException:
            if cache is not None and cache.get_seq_length() == length:
                cache.media = before  # nothing was read: the caller's cache is as it was
            raise


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
    if not isinstance(cache, FlamingoCache):
        raise ValueError(
            "past_key_values: expected a FlamingoCache (it keeps the media being read), got "
            f"{type(cache).__name__}"
        )
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
