"""Gated cross-attention: how media enter the stream of a frozen language model."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from flamingo.choices import Gate
from flamingo.config import CrossAttentionConfig
from flamingo.model.attention import FeedForward, GatedFeedForward, build_norm
from flamingo.model.reading import KeysValues, Reading


class MaskedCrossAttention(nn.Module):
    """Text attends to the latents of the media it may see; media are not normalised again.

    With ``config.qk_norm`` queries and keys are, head by head, after their projection (IDEFICS).
    """

    def __init__(self, dim: int, media_dim: int, config: CrossAttentionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        inner = config.heads * config.dim_head
        self.norm = build_norm(config.norm, dim, config.norm_eps)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(media_dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = build_norm(config.norm, config.dim_head, config.norm_eps)
            self.k_norm = build_norm(config.norm, config.dim_head, config.norm_eps)

    def keys_values(self, latents: Float[Tensor, "medium latent media_dim"]) -> KeysValues:
        """Keys and values of every medium: what text attends to."""
        keys_values = rearrange(
            self.to_kv(latents), "m l (two h d) -> two m h l d", two=2, h=self.heads
        )
        if self.k_norm is None:
            return keys_values
        key, value = keys_values
        return torch.stack([self.k_norm(key), value])

    def queries(
        self, text: Float[Tensor, "text_row token dim"]
    ) -> Float[Tensor, "text_row token head dim_head"]:
        """What each token asks the media it may see."""
        query = self.to_q(self.norm(text)).unflatten(-1, (self.heads, -1))
        return query if self.q_norm is None else self.q_norm(query)

    def forward(
        self, text: Float[Tensor, "text_row token dim"], media: KeysValues, reading: Reading
    ) -> Float[Tensor, "text_row token dim"]:
        return self.to_out(reading.attend(self.queries(text), media).flatten(-2))


class GatedCrossAttentionBlock(GradientCheckpointingLayer):
    """``x = x + tanh(a) CrossAttn(x, media); x = x + tanh(f) FF(x)``, before a frozen LM layer.

    Flamingo, section 2.2 and figure 4. With both gates at zero the LM's stream passes unchanged,
    bit for bit. A token that sees no medium gets zero from the attention, yet passes the gated
    feed-forward, as in the paper's formula.

    Norms, the form of the feed-forward and the gates' size are ``config``'s: IDEFICS has RMSNorms,
    a gated feed-forward and, in some models, a gate for each channel. With ``Gate.none`` there are
    no gates (None): both branches are added as they are, from the first step on.
    """

    attention_gate: nn.Parameter | None
    feed_forward_gate: nn.Parameter | None

    def __init__(self, dim: int, media_dim: int, config: CrossAttentionConfig) -> None:
        super().__init__()
        self.attention = MaskedCrossAttention(dim, media_dim, config)
        feed_forward = GatedFeedForward if config.ff_gated else FeedForward
        width = config.ff_mult * dim if config.ff_width is None else config.ff_width
        self.feed_forward = feed_forward(
            dim, width, config.activation, config.norm, config.norm_eps
        )
        with torch.no_grad():
            self.attention.to_out.weight.mul_(config.attention_init_scale)
            self.feed_forward.down.weight.mul_(config.feed_forward_init_scale)
        match config.gate:
            case Gate.scalar:
                size = 1
            case Gate.channel:
                size = dim
            case Gate.none:
                self.attention_gate = self.feed_forward_gate = None
                return
        self.attention_gate = nn.Parameter(torch.full((size,), float(config.gate_init)))
        self.feed_forward_gate = nn.Parameter(torch.full((size,), float(config.gate_init)))

    @torch.no_grad()
    def set_stream_scale(self, scale: Float[Tensor, " dim"]) -> None:
        """Start the norms of both branches at ``scale``, one factor a channel of the stream."""
        self.attention.norm.weight.copy_(scale)
        self.feed_forward.norm.weight.copy_(scale)

    def project_media(self, latents: Float[Tensor, "medium latent media_dim"]) -> KeysValues:
        """Keys and values of every medium: computed once, whoever reads it later."""
        return self.attention.keys_values(latents)

    def forward(
        self,
        text: Float[Tensor, "text_row token dim"],
        media: KeysValues | None,
        reading: Reading | None,
    ) -> Float[Tensor, "text_row token dim"]:
        """One step of the stream; without media (None) only the feed-forward acts.

        The block computes in its own parameters' dtype (autocast may lower it) and returns the
        stream's dtype, so a bf16 LM can be trained with fp32 blocks.
        """
        stream = text
        text = text.to(self.attention.to_q.weight.dtype)
        if media is not None and reading is not None:
            attended = self.attention(text, media, reading)
            text = text + _gated(attended, self.attention_gate)
        text = text + _gated(self.feed_forward(text), self.feed_forward_gate)
        return text.to(stream.dtype)


def _gated(
    branch: Float[Tensor, "text_row token dim"], gate: nn.Parameter | None
) -> Float[Tensor, "text_row token dim"]:
    return branch if gate is None else gate.tanh() * branch
