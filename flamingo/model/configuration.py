"""``FlamingoConfig``: what a saved model is made of, in transformers' format."""

from __future__ import annotations

from copy import copy
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar, no_type_check

from transformers import AutoConfig, PreTrainedConfig

from flamingo.choices import LanguageTraining
from flamingo.config import (
    CrossAttentionConfig,
    LanguageConfig,
    ResamplerConfig,
    VisionConfig,
)

T = TypeVar("T")


def to_plain(config: object) -> dict[str, Any]:
    """A configuration dataclass as JSON values (enums by their value)."""
    if not is_dataclass(config) or isinstance(config, type):
        raise ValueError(f"expected a configuration dataclass, got {config!r}")
    return asdict(
        config,
        dict_factory=lambda items: {k: v.value if isinstance(v, Enum) else v for k, v in items},
    )


def from_plain(schema: type[T], values: dict[str, Any]) -> T:
    """The inverse of :func:`to_plain`. Raises ``ValueError`` for a key the schema lacks."""
    known = {field.name: field for field in fields(schema)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{schema.__name__}: expected keys {sorted(known)}, got also {unknown}")
    defaults = schema()
    converted = {}
    for name, value in values.items():
        default = getattr(defaults, name)
        converted[name] = type(default)(value) if isinstance(default, Enum) else value
    return schema(**converted)


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
        return None if self.vision is None else from_plain(VisionConfig, self.vision)

    @property
    def language_options(self) -> LanguageConfig | None:
        return None if self.language is None else from_plain(LanguageConfig, self.language)

    @property
    def trains_language_model(self) -> bool:
        """Whether the LM's own weights train, and so are part of what is saved."""
        options = self.language_options
        return options is not None and options.train is not LanguageTraining.frozen

    @property
    def resampler_options(self) -> ResamplerConfig:
        return from_plain(ResamplerConfig, self.resampler or {})

    @property
    def cross_attention_options(self) -> CrossAttentionConfig:
        return from_plain(CrossAttentionConfig, self.cross_attention or {})
