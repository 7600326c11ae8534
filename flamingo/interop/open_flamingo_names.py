"""What OpenFlamingo's checkpoints call our parameters, and the spellings they come in.

Pure functions on names, by tables of templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedModel

from flamingo.backbones import language as lm

WRAPPERS = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_orig_mod.", "module.")
"""What activation checkpointing, FSDP, torch.compile and DistributedDataParallel put into names."""

OURS = (
    ("perceiver.latents", "resampler.latents"),
    ("perceiver.frame_embs", "resampler.frame_embeddings"),
    ("perceiver.layers.{i}.0.{rest}", "resampler.layers.{i}.attention.{rest}"),
    ("perceiver.layers.{i}.1.{rest}", "resampler.layers.{i}.feed_forward.{rest}"),
    ("perceiver.norm.{rest}", "resampler.norm.{rest}"),
    ("{block}.attn_gate", "cross_attention.{i}.attention_gate"),
    ("{block}.attn.{rest}", "cross_attention.{i}.attention.{rest}"),
    ("{block}.ff_gate", "cross_attention.{i}.feed_forward_gate"),
    ("{block}.ff.{rest}", "cross_attention.{i}.feed_forward.{rest}"),
)
"""OpenFlamingo 2's names and ours."""

OTHER_SPELLINGS = (
    # Otter, which names the parts of OpenFlamingo's sequences
    ("perceiver.layers.{i}.feed_forward.{rest}", "perceiver.layers.{i}.1.{rest}"),
    ("perceiver.layers.{i}.{name}.{rest}", "perceiver.layers.{i}.0.{name}.{rest}"),
    # OpenFlamingo 1: second names of the same modules
    ("lang_encoder.gated_cross_attn_layers.{i}.{rest}", "{block}.{rest}"),
    ("{block}.feed_forward.{rest}", "{block}.ff.{rest}"),  # Otter again
    # The frozen language model, as its layers are wrapped and kept aside
    ("lang_encoder.old_decoder_blocks.{i}.{rest}", "lang_encoder.{layers}.{i}.{rest}"),
    ("lang_encoder.{layers}.{i}.decoder_layer.{rest}", "lang_encoder.{layers}.{i}.{rest}"),
)
"""Names in other files, and what OpenFlamingo 2 calls them; applied one after the other."""

FORMER_HEAD = "embed_out.weight"
"""Of GPT-NeoX before transformers 5. OpenFlamingo keeps whatever has "embed" in its name, so
released files hold that head, and what is written for a GPT-NeoX bears the name too."""


@dataclass(frozen=True)
class LanguageModelNames:
    """Names of a language model's parameters that its checkpoints depend on."""

    layers: str
    """Of the decoder layers: ``"gpt_neox.layers"``."""
    embedding: str
    """Of the input embedding: ``"gpt_neox.embed_in.weight"``."""
    head: str
    """Of the output matrix: ``"lm_head.weight"``."""
    tied: bool
    """Whether the two are one matrix."""
    former_head: str | None = None
    """The head's name in released files, where transformers has changed it since."""

    @classmethod
    def of(cls, language_model: PreTrainedModel) -> LanguageModelNames:
        names = {id(module): name for name, module in language_model.named_modules()}
        return cls(
            lm.decoder_path(language_model).layers,
            f"{names[id(language_model.get_input_embeddings())]}.weight",
            f"{names[id(lm.output_head(language_model))]}.weight",
            lm.has_tied_head(language_model),
            FORMER_HEAD if language_model.config.model_type == "gpt_neox" else None,
        )

    @property
    def released_head(self) -> str:
        """The head's name in released files."""
        return self.former_head or self.head


def canonical(name: str, names: LanguageModelNames) -> str:
    """A checkpoint's ``name`` as OpenFlamingo 2 spells it; a tied head's is the embedding's."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    for old, new in OTHER_SPELLINGS:
        name = _translate(name, old, new, names.layers) or name
    if name == f"lang_encoder.{names.former_head}":
        name = f"lang_encoder.{names.head}"
    if names.tied and name == f"lang_encoder.{names.head}":
        return f"lang_encoder.{names.embedding}"
    return name


def to_ours(name: str, layers: str) -> str | None:
    """Our name of a parameter that trains; ``None`` where the (canonical) name is of no such."""
    return _first(name, OURS, layers)


def from_ours(name: str, layers: str) -> str | None:
    """The inverse of :func:`to_ours`."""
    return _first(name, ((ours, theirs) for theirs, ours in OURS), layers)


def _first(name: str, pairs: Iterable[tuple[str, str]], layers: str) -> str | None:
    translated = (_translate(name, old, new, layers) for old, new in pairs)
    return next((found for found in translated if found is not None), None)


BLOCK = "lang_encoder.{layers}.{i}.gated_cross_attn_layer"
PATTERNS = {"i": r"\d+", "name": "norm_media|norm_latents|to_q|to_kv|to_out", "rest": ".+"}


def _translate(name: str, old: str, new: str, layers: str) -> str | None:
    """``name`` rewritten from the template ``old`` to ``new``, or ``None`` if it does not fit."""
    old, new = (template.replace("{block}", BLOCK) for template in (old, new))
    pattern = re.escape(old.replace("{layers}", layers))
    for field, values in PATTERNS.items():
        pattern = pattern.replace(re.escape(f"{{{field}}}"), f"(?P<{field}>{values})")
    found = re.fullmatch(pattern, name)
    return None if found is None else new.format(layers=layers, **found.groupdict())
