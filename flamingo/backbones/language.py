"""Frozen language models of transformers: loading, the path to their layers, and their head.

A language model stays exactly what transformers made it. This file knows the few facts that
differ between families: where the decoder layers are, whether the decoder passes keyword
arguments on to them, how positions come about, and what the family does to its logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    IdeficsConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import flamingo.backbones.mosaic_gpt  # noqa: F401 (a model_type for transformers' Auto classes)
from flamingo.backbones import assets, idefics
from flamingo.backbones.adapters import BASE, frozen_parameters
from flamingo.backbones.attention import choose_attention
from flamingo.backbones.fingerprint import weights_digest
from flamingo.backbones.places import named
from flamingo.choices import LanguageTraining
from flamingo.config import LanguageConfig

EMBEDDED_LANGUAGE_MODEL = "smollm2-135m-instruct"

DROP_KEYWORDS = ("mpt", "falcon", "bloom", "gptj")
"""Families whose decoder does not hand unknown keyword arguments on to its layers."""


@dataclass(frozen=True)
class DecoderPath:
    """Where a family keeps its decoder layers, and how to reach them with an extra argument."""

    layers: str
    """Path below the causal LM, as in parameter names (``"model.layers"``)."""
    passes_keywords: bool
    """Whether the decoder hands unknown keyword arguments to every layer."""


def decoder_path(language_model: PreTrainedModel) -> DecoderPath:
    """The path of a transformers causal LM's decoder layers.

    Raises ``ValueError`` for a family without a plain stack of decoder layers.
    """
    prefix = language_model.base_model_prefix
    decoder = language_model.base_model
    candidates = ("layers", "decoder.layers", "h", "blocks")
    for candidate in candidates:
        try:
            layers = decoder.get_submodule(candidate)
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList) and len(layers) > 0:
            keywords = language_model.config.model_type not in DROP_KEYWORDS
            return DecoderPath(f"{prefix}.{candidate}", passes_keywords=keywords)
    raise ValueError(
        f"language model: expected a decoder with one of {candidates} below "
        f"{type(decoder).__name__}, got children {[name for name, _ in decoder.named_children()]}"
    )


def decoder_layers(language_model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers themselves, first to last."""
    return cast(nn.ModuleList, language_model.get_submodule(decoder_path(language_model).layers))


def stream_scale(layer: nn.Module) -> Float[Tensor, " dim"]:
    """How much the norm that a decoder layer reads its stream through scales each channel.

    Relative to the median channel. Found by applying the norm to ones of alternating sign, so
    that families which store the scale differently (Gemma: minus one) need no case of their own.
    Raises ``ValueError`` for a layer that reads its stream unnormalised.
    """
    names = ("input_layernorm", "ln_1", "self_attn_layer_norm", "norm_1", "ln_attn")
    norm = next((getattr(layer, name) for name in names if hasattr(layer, name)), None)
    if norm is None:
        raise ValueError(
            f"cross_attention.language_model_norms: expected a decoder layer with one of {names}, "
            f"got {[name for name, _ in layer.named_children()]} in {type(layer).__name__}"
        )
    weight = cast(Tensor, norm.weight)
    ones = torch.ones_like(weight)
    ones[1::2] = -1
    with torch.no_grad():
        scale = ((norm(ones) - norm(-ones)) / (2 * ones)).float()
    return scale / scale.abs().median()


def input_matrix(language_model: PreTrainedModel) -> Float[Tensor, "vocabulary dim"]:
    """The LM's own embedding matrix."""
    return cast(Tensor, language_model.get_input_embeddings().weight)


def output_head(language_model: PreTrainedModel) -> nn.Linear:
    """The LM's own head; its matrix may be the embedding's. Raises ``ValueError`` without one."""
    head = language_model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"language model: expected a causal LM with a linear head, got {head!r}")
    return head


def vocabulary_size(language_model: PreTrainedModel) -> int:
    """Rows of the LM's own embedding (its tokenizer may use fewer)."""
    return input_matrix(language_model).shape[0]


def hidden_size(language_model: PreTrainedModel) -> int:
    """Width of the stream between decoder layers."""
    width, out = input_matrix(language_model).shape[1], output_head(language_model).in_features
    if width != out:
        raise ValueError(
            "language model: expected input and output embeddings as wide as the stream, got "
            f"{width} and {out} (projected embeddings are not supported)"
        )
    return width


def has_tied_head(language_model: PreTrainedModel) -> bool:
    """Whether output and input embeddings are one matrix."""
    return output_head(language_model).weight is input_matrix(language_model)


def end_token_id(language_model: PreTrainedModel) -> int | None:
    """The token that ends the LM's own texts, if its config names one inside its vocabulary."""
    return _inside(language_model, language_model.config.get_text_config().eos_token_id)


def begin_token_id(language_model: PreTrainedModel) -> int | None:
    """The token that begins the LM's own texts; for LMs without one, the end token."""
    own = _inside(language_model, language_model.config.get_text_config().bos_token_id)
    return end_token_id(language_model) if own is None else own


def _inside(language_model: PreTrainedModel, token: int | list[int] | None) -> int | None:
    token = token[0] if isinstance(token, list) else token
    return token if token is not None and 0 <= token < vocabulary_size(language_model) else None


def explicit_positions(
    language_model: PreTrainedModel, attention_mask: Int[Tensor, "row all"], tokens: int
) -> Int[Tensor, "row token"] | None:
    """Position ids for the last ``tokens`` of ``attention_mask``, where the family needs them.

    Absolute learned positions that are not derived from the mask (GPT-2) would count left padding.
    Rotary and ALiBi families only see differences, OPT and BLOOM derive positions from the mask.
    """
    if language_model.config.model_type not in ("gpt2", "gpt_bigcode"):
        return None
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -tokens:]


def learned_positions(language_model: PreTrainedModel) -> int | None:
    """How many positions have an embedding of their own (GPT-2, OPT); None: any are computed."""
    named = ("wpe", "embed_positions", "position_embeddings")
    for name, module in language_model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(named) and module.weight.numel():
            return language_model.config.get_text_config().max_position_embeddings
    return None


def may_have_gaps(language_model: PreTrainedModel) -> bool:
    """Whether padding inside a row, between its tokens, changes nothing.

    It does where distances are counted in cached tokens, padding included: MPT's ALiBi, and windows
    that slide.
    """
    config = language_model.config.get_text_config()
    kinds = {*(getattr(config, "layer_types", None) or ())}
    window = getattr(config, "sliding_window", None) if not kinds else None
    return (
        config.model_type not in ("mpt", "mosaic_gpt")
        and kinds <= {"full_attention"}
        and window is None
        and not language_model._is_stateful
    )


def packed_mask(
    language_model: PreTrainedModel, documents: Int[Tensor, "row token"]
) -> Float[Tensor, "row 1 token token"] | None:
    """The attention mask with which the documents of a packed row do not see one another.

    None for most families: from positions that begin anew in each document transformers derives it
    by itself, for whichever attention kernel runs. Those that do not look at positions for it get
    the mask: zero where a token looks, the lowest number where not.

    Raises ``ValueError`` as :func:`require_separate_documents`.
    """
    require_separate_documents(language_model)
    family = language_model.config.model_type
    if family not in ("opt", "mpt", "falcon", "mosaic_gpt"):
        return None
    own = documents[:, :, None] == documents[:, None, :]
    visible = own.tril()[:, None]
    dtype = next(p.dtype for p in language_model.parameters() if p.is_floating_point())
    mask = torch.zeros(visible.shape, dtype=dtype, device=documents.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)


def require_separate_documents(language_model: PreTrainedModel) -> None:
    """Raise ``ValueError`` for an LM that is known to carry one document of a packed row into the
    next."""
    if mixing := _mixing(language_model):
        raise ValueError(
            "documents: expected a language model that keeps packed documents apart, got "
            f"{mixing}: train it with training.packing=null"
        )


def _mixing(language_model: PreTrainedModel) -> str | None:
    """What of the LM mixes documents; None: nothing that is known."""
    config = language_model.config.get_text_config()
    family = config.model_type
    if family == "bloom" or (family == "falcon" and config.alibi):
        return f"{family} with ALiBi positions"
    if family in ("biogpt", "xglm", "cpmant"):
        return f"{family}, whose positions and mask take a row for one text"
    kinds = {*(getattr(config, "layer_types", None) or ())}
    other = sorted(kinds - {"full_attention", "sliding_attention", "chunked_attention"})
    if other or language_model._is_stateful:
        return f"{family} with layers that are no attention {other or ''}".strip()
    kernel = str(config._attn_implementation)
    if "flash" in kernel and "flex" not in kernel:
        return f"attention by {kernel}, which does so for a single row only"
    return None


def head_logits(
    language_model: PreTrainedModel,
    hidden: Float[Tensor, "*shape dim"],
    new_rows: Float[Tensor, "new dim"],
) -> tuple[Float[Tensor, "*shape vocabulary"], Float[Tensor, "*shape new"]]:
    """Logits of the LM's own vocabulary and of the new tokens, as the family would give them."""
    own = output_head(language_model)(hidden)
    new = hidden @ new_rows.to(hidden.dtype).T
    config = language_model.config.get_text_config()
    return _finish(config, own), _finish(config, new)


def _finish(config: object, logits: Tensor) -> Tensor:
    """What some families do after the head: Cohere scales, Granite divides, Gemma 2 caps."""
    scale = getattr(config, "logit_scale", None)
    if isinstance(scale, (int, float)) and scale != 1:
        logits = logits * scale
    divisor = getattr(config, "logits_scaling", None)
    if isinstance(divisor, (int, float)) and divisor != 1:
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def fingerprint(language_model: PreTrainedModel) -> str:
    """SHA-256 of the frozen parameters, rounded to bfloat16: fp32 and bf16 copies are one model.

    Adapters are left out. Of quantised weights it is the codes and their scales that are hashed.
    """
    frozen = [parameter.data for parameter in frozen_parameters(language_model)]
    parts = [*frozen, *_quantization_scales(language_model)]
    return weights_digest(part.to(torch.bfloat16) for part in parts)


def _quantization_scales(language_model: PreTrainedModel) -> list[Tensor]:
    """What bitsandbytes multiplies its codes by, wherever a layer keeps it at the moment."""
    scales = []
    for module in language_model.modules():
        if hasattr(module, BASE):  # an adapter shows the weight of the layer it stands around
            continue
        weight = getattr(module, "weight", None)
        places = (
            (getattr(weight, "quant_state", None), "absmax"),  # 4 bits
            (weight, "SCB"),  # 8 bits, before the first call
            (getattr(module, "state", None), "SCB"),  # and after it
        )
        found = [getattr(owner, name, None) for owner, name in places]
        scales += [scale.data for scale in found if isinstance(scale, Tensor)]
    return scales


def _folder(config: LanguageConfig) -> str:
    if config.name == EMBEDDED_LANGUAGE_MODEL and not Path(config.name).exists():
        return str(assets.language_model_folder())
    return config.name


def load_language_model(
    config: LanguageConfig,
    dtype: torch.dtype = torch.float32,
    *,
    quantization: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """A causal LM, frozen and in eval mode. Attention kernels as transformers chooses them, but on
    CPUs where few tokens ask (:mod:`flamingo.backbones.attention`).

    With ``train=scratch`` its weights are random, by torch's global generator.

    Of an IDEFICS checkpoint it is the decoder (:mod:`flamingo.backbones.idefics`).
    ``quantization`` is what ``quantization_config`` is to transformers; a folder whose weights are
    quantised says so itself.

    Raises ``ValueError`` for an IDEFICS checkpoint that is to be quantised.
    """
    folder = _folder(config)
    options: dict[str, Any] = {"revision": config.revision}
    with named("language.name", folder):
        stored = AutoConfig.from_pretrained(folder, **options)
    if config.train is LanguageTraining.scratch:
        own = idefics.language_config(stored) if isinstance(stored, IdeficsConfig) else stored
        drawn = AutoModelForCausalLM.from_config(own, dtype=dtype)
        return choose_attention(cast(PreTrainedModel, drawn)).requires_grad_(False).eval()
    if stored.model_type == "idefics":
        if quantization is not None:
            raise ValueError(f"{folder}: expected no quantization for IDEFICS, got {quantization}")
        return choose_attention(idefics.load_language_model(folder, config.revision, dtype))
    if quantization is not None and getattr(stored, "quantization_config", None) is None:
        options["quantization_config"] = quantization
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    return choose_attention(model).requires_grad_(False).eval()


def load_tokenizer(config: LanguageConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to :func:`load_language_model`'s model.

    Raises ``ValueError`` for a folder without one.
    """
    folder = _folder(config)
    with named("language.name", folder):
        try:
            return AutoTokenizer.from_pretrained(folder, revision=config.revision)
        except ValueError as error:
            raise ValueError(
                f"language.name: expected a tokenizer with the model in {folder}, found none: "
                f"{str(error).splitlines()[0]}"
            ) from error
