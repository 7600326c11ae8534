"""``FlamingoConfig``: what a saved model is made of, in transformers' format."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, no_type_check

from transformers import AutoConfig, PreTrainedConfig

from flamingo.choices import LanguageTraining
from flamingo.config import (
    CrossAttentionConfig,
    LanguageConfig,
    ResamplerConfig,
    VisionConfig,
)
from flamingo.structured import build


@dataclass(kw_only=True)
class _Sections:
    """What ``config.json`` holds of our own configuration: a mistake is named ``resampler.depth``,
    as on the command line."""

    vision: VisionConfig | None = None
    language: LanguageConfig | None = None
    resampler: ResamplerConfig | None = None
    cross_attention: CrossAttentionConfig | None = None


@lru_cache
def _sections(values: str) -> _Sections:
    """From JSON; built once, for building takes milliseconds and training asks for every row."""
    return build(json.loads(values), _Sections)


@no_type_check  # transformers' __init__ takes more than the fields: a checked one would refuse it
class FlamingoConfig(PreTrainedConfig):
    """Configuration of :class:`FlamingoForConditionalGeneration`.

    ``vision``, ``language``, ``resampler`` and ``cross_attention`` hold the dataclasses of
    ``flamingo.config`` as plain values (read them through ``vision_options`` and its like);
    ``text_config`` is the language model's own configuration.

    ``new_token_ids`` are the ids whose embedding rows are ours: ids at or above the LM's own
    vocabulary append columns to its logits, in this order; ids inside it replace theirs.
    ``*_fingerprint`` identify the backbones that training started from; loading refuses others
    where they are frozen. ``language_adapter`` is
    the adapter of peft that trains inside the language model, if there is one.
    """

    model_type = "flamingo"
    sub_configs = {"text_config": AutoConfig}  # type: ignore[assignment]  # noqa: RUF012

    text_config: Any = None
    vision: dict[str, Any] | None = None
    language: dict[str, Any] | None = None
    resampler: dict[str, Any] | None = None
    cross_attention: dict[str, Any] | None = None
    vision_dim: int = 1024
    new_token_ids: list[int] | None = None
    image_token_id: int | None = None
    end_of_chunk_token_id: int | None = None
    vision_fingerprint: str | None = None
    language_fingerprint: str | None = None
    language_adapter: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            values = dict(self.text_config)
            model_type = values.pop("model_type", None)
            if model_type is None:
                raise ValueError(
                    "text_config.model_type: expected a transformers model type, got none"
                )
            self.text_config = AutoConfig.for_model(model_type, **values)
        if self.text_config is not None:
            self.tie_word_embeddings = False  # the LM ties its own; ours has nothing to tie
        super().__post_init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The LM's, with as many entries in its vocabulary as the logits have columns.

        transformers' generation takes the width of the logits from here.
        """
        if self.text_config is None:
            return super().get_text_config(*args, **kwargs)
        own = copy(self.text_config.get_text_config())
        beyond = sum(token >= own.vocab_size for token in self.new_token_ids or ())
        own.vocab_size += beyond
        return own

    def to_dict(self) -> dict[str, Any]:
        """Without the place on this machine that the language model was loaded from."""
        values = super().to_dict()
        if isinstance(text := values.get("text_config"), dict):
            text.pop("_name_or_path", None)
        return values

    @property
    def vision_options(self) -> VisionConfig | None:
        return None if self.vision is None else self._options("vision")

    @property
    def language_options(self) -> LanguageConfig | None:
        return None if self.language is None else self._options("language")

    @property
    def trains_language_model(self) -> bool:
        """Whether the LM's own weights train, and so are part of what is saved."""
        options = self.language_options
        return options is not None and options.train is not LanguageTraining.frozen

    @property
    def resampler_options(self) -> ResamplerConfig:
        return self._options("resampler")

    @property
    def cross_attention_options(self) -> CrossAttentionConfig:
        return self._options("cross_attention")

    def _options(self, section: str) -> Any:
        """A section as its dataclass. Raises ``ValueError`` naming the key for what it refuses."""
        return getattr(_sections(json.dumps({section: getattr(self, section) or {}})), section)
