"""MosaicGPT: the language model of OpenFlamingo-3B, which transformers itself does not have.

MosaicML's MPT-1B (``mosaicml/mpt-1b-redpajama-200b`` and its ``-dolly`` variant, April 2023) comes
as ``model_type: mosaic_gpt`` with code to be executed from its repository. No such code is run
here: this module is the same computation, under the parameter names of the released weights. It
differs from transformers' MPT by the norms of queries and keys, and in names.
:mod:`flamingo.backbones.language` registers it with the Auto classes.
"""

from __future__ import annotations

from typing import Any, cast, no_type_check

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

NORM_EPS = 1e-5


@no_type_check  # as FlamingoConfig: transformers' __init__ takes more than the fields
class MosaicGPTConfig(PreTrainedConfig):
    """The released ``config.json``, by its own names; what only concerned training is kept unread.

    Raises ``ValueError`` for options that no released model uses and that are not computed here:
    learned positions (``alibi: false``), a prefix LM, dropout, norms of another kind.
    """

    model_type = "mosaic_gpt"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "max_seq_len",
    }

    d_model: int = 2048
    n_heads: int = 16
    n_layers: int = 24
    mlp_ratio: int = 4
    max_seq_len: int = 2048
    vocab_size: int = 50368
    alibi: bool = True
    alibi_bias_max: int = 8
    attn_qk_ln: bool = False
    attn_clip_qkv: float | None = None
    softmax_scale: float | None = None
    logit_scale: float | str | None = None
    no_bias: bool = False
    prefix_lm: bool = False
    use_cache: bool = False
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        expected = {"alibi": True, "prefix_lm": False, "tie_word_embeddings": True}
        for name, value in expected.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"mosaic_gpt {name}: expected {value}, got {getattr(self, name)!r}"
                )
        for name in ("attn_pdrop", "resid_pdrop", "emb_pdrop"):
            if kwargs.get(name):
                raise ValueError(f"mosaic_gpt {name}: expected 0, got {kwargs[name]!r}")
        if "layernorm" not in (norm := kwargs.get("norm_type", "layernorm")):
            raise ValueError(f"mosaic_gpt norm_type: expected a layernorm, got {norm!r}")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"mosaic_gpt d_model: expected a multiple of n_heads={self.n_heads}, "
                f"got {self.d_model}"
            )
        if self.logit_scale == "inv_sqrt_d_model":
            self.logit_scale = self.d_model**-0.5
        if isinstance(self.logit_scale, str):
            raise ValueError(
                "mosaic_gpt logit_scale: expected a number or inv_sqrt_d_model, "
                f"got {self.logit_scale!r}"
            )
        super().__post_init__(**kwargs)


class MosaicGPTAttention(nn.Module):
    """``softmax(norm(q) norm(k)^T scale + alibi) v``.

    The norms of queries and keys run over the whole width, before it is split into heads.
    """

    def __init__(self, config: MosaicGPTConfig, layer: int) -> None:
        super().__init__()
        width, bias = config.d_model, not config.no_bias
        self.layer = layer
        self.heads = config.n_heads
        self.clip = config.attn_clip_qkv
        self.scale = config.softmax_scale  # None: 1 / sqrt(width of a head)
        self.Wqkv = nn.Linear(width, 3 * width, bias=bias)
        self.out_proj = nn.Linear(width, width, bias=bias)
        if config.attn_qk_ln:
            self.q_ln = nn.LayerNorm(width, eps=NORM_EPS, bias=bias)
            self.k_ln = nn.LayerNorm(width, eps=NORM_EPS, bias=bias)

    def forward(
        self,
        hidden_states: Float[Tensor, "row token dim"],
        scores_bias: Float[Tensor, "row head token key"],
        past_key_values: Cache | None,
    ) -> Float[Tensor, "row token dim"]:
        mixed = self.Wqkv(hidden_states)
        if self.clip:
            mixed = mixed.clamp(-self.clip, self.clip)
        query, key, value = mixed.chunk(3, dim=-1)
        if hasattr(self, "q_ln"):
            query, key = self.q_ln(query), self.k_ln(key)
        query, key, value = (
            rearrange(part, "row token (head dim) -> row head token dim", head=self.heads)
            for part in (query, key, value)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=scores_bias, scale=self.scale
        )
        return self.out_proj(rearrange(attended, "row head token dim -> row token (head dim)"))


class MosaicGPTMLP(nn.Module):
    """``down(gelu(up(x)))`` with the exact GELU."""

    def __init__(self, config: MosaicGPTConfig) -> None:
        super().__init__()
        width, bias = config.d_model, not config.no_bias
        self.mlp_up = nn.Linear(width, config.mlp_ratio * width, bias=bias)
        self.mlp_down = nn.Linear(config.mlp_ratio * width, width, bias=bias)

    def forward(self, hidden_states: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
        return self.mlp_down(F.gelu(self.mlp_up(hidden_states)))


class MosaicGPTBlock(GradientCheckpointingLayer):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: MosaicGPTConfig, layer: int) -> None:
        super().__init__()
        bias = not config.no_bias
        self.ln_1 = nn.LayerNorm(config.d_model, eps=NORM_EPS, bias=bias)
        self.attn = MosaicGPTAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.d_model, eps=NORM_EPS, bias=bias)
        self.mlp = MosaicGPTMLP(config)

    def forward(
        self,
        hidden_states: Float[Tensor, "row token dim"],
        scores_bias: Float[Tensor, "row head token key"],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "row token dim"]:
        attended = self.attn(self.ln_1(hidden_states), scores_bias, past_key_values)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class MosaicGPTPreTrainedModel(PreTrainedModel):
    """What transformers asks of both classes below."""

    config_class = MosaicGPTConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MosaicGPTBlock"]  # noqa: RUF012


class MosaicGPTModel(MosaicGPTPreTrainedModel):
    """The decoder. Keyword arguments it does not know are handed to every block."""

    def __init__(self, config: MosaicGPTConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(MosaicGPTBlock(config, i) for i in range(config.n_layers))
        self.ln_f = nn.LayerNorm(config.d_model, eps=NORM_EPS, bias=not config.no_bias)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.wte = value

    def forward(
        self,
        input_ids: Int[Tensor, "row token"] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "row token dim"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Raises ``ValueError`` unless exactly one of ``input_ids`` and ``inputs_embeds`` comes."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        hidden: Tensor = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        bias = self._scores_bias(hidden, attention_mask, past_key_values)
        states = [hidden]
        for block in self.blocks:
            hidden = block(hidden, scores_bias=bias, past_key_values=past_key_values, **kwargs)
            states.append(hidden)
        states[-1] = hidden = self.ln_f(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=tuple(states) if output_hidden_states else None,
        )

    def _scores_bias(
        self,
        inputs_embeds: Float[Tensor, "row token dim"],
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
    ) -> Float[Tensor, "row head token key"]:
        """ALiBi where a token may look, the lowest number where it may not.

        ALiBi stands relative to the last key, as in the original: softmax cancels what all keys of
        a query have in common, so left padding and cached tokens change nothing.
        """
        causal = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        causal = cast(Float[Tensor, "row 1 token key"], causal)
        hidden: Bool[Tensor, "row 1 token key"] = causal < 0
        heads, longest = self.config.n_heads, self.config.alibi_bias_max
        alibi = build_mpt_alibi_tensor(heads, hidden.shape[-1], longest, inputs_embeds.device)
        alibi = alibi.to(inputs_embeds.dtype)[None]
        return alibi.masked_fill(hidden, torch.finfo(inputs_embeds.dtype).min)


class MosaicGPTForCausalLM(MosaicGPTPreTrainedModel, GenerationMixin):
    """The decoder and its head, which is the embedding (the released files hold it once)."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012

    def __init__(self, config: MosaicGPTConfig) -> None:
        super().__init__(config)
        self.transformer = MosaicGPTModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "row token"] | None = None,
        labels: Int[Tensor, "row token"] | None = None,
        logits_to_keep: int | Int[Tensor, " kept"] = 0,
        **inputs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token; ``labels`` add the loss. ``inputs`` are the decoder's."""
        output = self.transformer(input_ids, **inputs)
        hidden = output.last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, keep])
        if self.config.logit_scale is not None:
            logits = logits * self.config.logit_scale
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
        )


AutoConfig.register(MosaicGPTConfig.model_type, MosaicGPTConfig)
AutoModelForCausalLM.register(MosaicGPTConfig, MosaicGPTForCausalLM)
