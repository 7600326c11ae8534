"""Assisted generation: another model drafts tokens, which this one accepts or corrects.

transformers hands the drafting model the text alone. :class:`Assistant` gives it what else it
needs: a Flamingo its own reading of the media; a bare LM, which has no rows for ``<image>`` and
``<|endofchunk|>``, ids that it knows in their place.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from flamingo.backbones import language as lm
from flamingo.model.configuration import FlamingoConfig

if TYPE_CHECKING:
    from flamingo.model.generation import FlamingoGeneration


class Assistant:
    """A drafting model as transformers' assisted generation asks it: all else is the model's own.

    What is drafted decides how fast the answer comes, never what it is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        main: FlamingoGeneration,
        media: dict[str, Tensor],
    ) -> None:
        self._model = model
        self._media = media
        self._vocabulary = main.config.get_text_config().vocab_size
        self._stand_ins: dict[int, int] = {}
        self.config = model.config
        if not isinstance(model.config, FlamingoConfig):
            own = lm.vocabulary_size(model)
            stand_in = lm.end_token_id(model) or 0
            self._stand_ins = {t: stand_in for t in main.config.new_token_ids or () if t >= own}
            self.config = copy(model.config.get_text_config())
            self.config.vocab_size = self._vocabulary

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        main: FlamingoGeneration,
        media: dict[str, Tensor | None],
    ) -> Assistant:
        """``model`` drafting for ``main``. Raises ``ValueError`` for one that reads other ids."""
        own, its = main.config, model.config
        given = {name: tensor for name, tensor in media.items() if tensor is not None}
        if isinstance(its, FlamingoConfig):
            same = (own.new_token_ids, own.image_token_id) == (
                its.new_token_ids,
                its.image_token_id,
            )
            if not same or own.get_text_config().vocab_size != its.get_text_config().vocab_size:
                raise ValueError(
                    f"assistant_model: expected a Flamingo with new tokens {own.new_token_ids}, "
                    f"got {its.new_token_ids}"
                )
            if "media_latents" in given and model is not main:
                raise ValueError(
                    "media_latents: expected pixel_values or vision_features with an "
                    "assistant_model (it reads media through a resampler of its own)"
                )
            return cls(model, main, given)
        expected = lm.vocabulary_size(main.language_model)
        if lm.vocabulary_size(model) != expected:
            raise ValueError(
                f"assistant_model: expected the language model's vocabulary of {expected} tokens, "
                f"got {lm.vocabulary_size(model)}"
            )
        return cls(model, main, {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, input_ids: Int[Tensor, "row token"], **options: Any) -> Any:
        """A draft behind ``input_ids``, as wide in scores as the main model's logits."""
        options.pop("media_latents", None)  # the main model's, where it runs without a cache
        if options.get("past_key_values") is None:
            options |= self._media
        known = input_ids.clone()
        for token, stand_in in self._stand_ins.items():
            known[input_ids == token] = stand_in
        draft = cast(Any, self._model).generate(input_ids=known, **options)
        draft.sequences[:, : input_ids.shape[1]] = input_ids
        missing = self._vocabulary - draft.scores[0].shape[-1]
        if missing:
            draft.scores = tuple(F.pad(s, (0, missing), value=-torch.inf) for s in draft.scores)
        return draft
