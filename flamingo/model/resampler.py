"""The resampler: what an encoder's features become before text attends to them."""

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from flamingo.choices import Norm, ResamplerKind
from flamingo.config import ResamplerConfig
from flamingo.model.attention import FeedForward, attend, build_norm


class PerceiverAttention(nn.Module):
    """Latents attend to the medium and to themselves: ``Attn(q=z, kv=[x; z])``.

    Both are normalised first, each by its own LayerNorm; the linears have no bias. With
    ``config.qk_norm`` queries and keys are normalised too, head by head (IDEFICS).
    """

    def __init__(self, dim: int, config: ResamplerConfig) -> None:
        super().__init__()
        self.heads = heads = config.heads
        dim_head = config.dim_head
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = build_norm(Norm.layer, dim_head)
            self.k_norm = build_norm(Norm.layer, dim_head)

    def queries_keys_values(
        self, media: Float[Tensor, "medium patch dim"], latents: Float[Tensor, "medium latent dim"]
    ) -> tuple[
        Float[Tensor, "medium head latent dim_head"],
        Float[Tensor, "medium head place dim_head"],
        Float[Tensor, "medium head place dim_head"],
    ]:
        """Queries of the latents; keys and values of all patches, then of all latents."""
        media, latents = self.norm_media(media), self.norm_latents(latents)
        query = rearrange(self.to_q(latents), "m l (h d) -> m h l d", h=self.heads)
        keys_values = self.to_kv(torch.cat([media, latents], dim=1))
        key, value = rearrange(keys_values, "m n (two h d) -> two m h n d", two=2, h=self.heads)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        return query, key, value

    def forward(
        self, media: Float[Tensor, "medium patch dim"], latents: Float[Tensor, "medium latent dim"]
    ) -> Float[Tensor, "medium latent dim"]:
        out = attend(*self.queries_keys_values(media, latents))
        return self.to_out(rearrange(out, "m h l d -> m l (h d)"))


class ResamplerLayer(GradientCheckpointingLayer):
    """``z = z + Attn(z, x); z = z + FF(z)``."""

    def __init__(self, dim: int, config: ResamplerConfig) -> None:
        super().__init__()
        self.attention = PerceiverAttention(dim, config)
        self.feed_forward = FeedForward(dim, config.ff_mult * dim, config.activation)

    def forward(
        self, latents: Float[Tensor, "medium latent dim"], media: Float[Tensor, "medium patch dim"]
    ) -> Float[Tensor, "medium latent dim"]:
        latents = latents + self.attention(media, latents)
        return latents + self.feed_forward(latents)


class Resampler(nn.Module):
    """What every resampler has: statistics to standardise features by, channel by channel.

    They are buffers and so part of the checkpoint; as they start, they change nothing.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(dim))
        self.register_buffer("feature_std", torch.ones(dim))

    @torch.no_grad()
    def set_feature_statistics(
        self, mean: Float[Tensor, " dim"], std: Float[Tensor, " dim"]
    ) -> None:
        """Store the per-channel statistics that features are standardised with.

        Raises ``ValueError`` unless both are finite and ``std`` is positive.
        """
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise ValueError(
                "feature statistics: expected finite means and positive deviations, "
                f"got mean in [{mean.min():g}, {mean.max():g}], "
                f"std in [{std.min():g}, {std.max():g}]"
            )
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std)

    def standardize(self, features: Float[Tensor, "*media dim"]) -> Float[Tensor, "*media dim"]:
        """Features in the resampler's dtype, by the stored statistics."""
        return (features.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_std


class PerceiverResampler(Resampler):
    """Flamingo's perceiver resampler (section 2.1, figure 5; appendix A.1.1).

    Frame ``t`` of a medium gets the learned embedding ``t`` added to its patches; all patches of
    all frames are flattened; learned latents read them in ``depth`` layers; a LayerNorm ends it.

    Deviations: features may be standardised per channel first, by statistics that are buffers and
    so part of the checkpoint (frozen encoders without a final norm have channels of very unlike
    scale); frame embeddings start at zero, so a still image starts as without them; inputs are
    padding-free by contract (the caller passes real media alone).
    """

    latents: Float[Tensor, "latent dim"]

    def __init__(self, dim: int, config: ResamplerConfig) -> None:
        super().__init__(dim)
        self.latents = nn.Parameter(torch.randn(config.num_latents, dim) * config.latent_std)
        self.frame_embeddings = nn.Parameter(torch.zeros(config.max_frames, dim))
        self.layers = nn.ModuleList(ResamplerLayer(dim, config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, features: Float[Tensor, "medium frame patch dim"]
    ) -> Float[Tensor, "medium latent dim"]:
        frames = features.shape[1]
        if frames > len(self.frame_embeddings):
            raise ValueError(
                f"frames of a medium: expected at most resampler.max_frames = "
                f"{len(self.frame_embeddings)}, got {frames}"
            )
        features = self.standardize(features) + self.frame_embeddings[:frames, None]
        media = rearrange(features, "m f p d -> m (f p) d")
        latents = repeat(self.latents, "l d -> m l d", m=len(media))
        for layer in self.layers:
            latents = layer(latents, media)
        return self.norm(latents)


class IdentityResampler(Resampler):
    """No resampler: the latents of an image are the encoder's tokens (IDEFICS without one).

    Raises ``ValueError`` for clips: the media of a row must have equally many latents.
    """

    def forward(
        self, features: Float[Tensor, "medium frame patch dim"]
    ) -> Float[Tensor, "medium patch dim"]:
        return self.standardize(_only_frame(features, ResamplerKind.identity))


class TokenMLP(GradientCheckpointingLayer):
    """``x = x + FF(x)``, token by token."""

    def __init__(self, dim: int, config: ResamplerConfig) -> None:
        super().__init__()
        self.feed_forward = FeedForward(dim, config.ff_mult * dim, config.activation)

    def forward(
        self, tokens: Float[Tensor, "medium patch dim"]
    ) -> Float[Tensor, "medium patch dim"]:
        return tokens + self.feed_forward(tokens)


class MLPResampler(Resampler):
    """``z = norm(MLP(x))`` of each token alone: the paper's baseline (section 3.3, table 3 vi).

    ``depth`` residual feed-forward layers and the LayerNorm that ends the perceiver too. Nothing
    is resampled: there are as many latents as the encoder has tokens. Raises ``ValueError`` for
    clips, as :class:`IdentityResampler`.
    """

    def __init__(self, dim: int, config: ResamplerConfig) -> None:
        super().__init__(dim)
        self.layers = nn.ModuleList(TokenMLP(dim, config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, features: Float[Tensor, "medium frame patch dim"]
    ) -> Float[Tensor, "medium patch dim"]:
        tokens = self.standardize(_only_frame(features, ResamplerKind.mlp))
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)


class PoolingResampler(Resampler):
    """``z_l = norm(W_l norm(mean(x)))``: all that can be said without looking anywhere.

    The mean runs over the tokens of all frames; the linear gives ``num_latents`` latents.
    """

    def __init__(self, dim: int, config: ResamplerConfig) -> None:
        super().__init__(dim)
        self.norm_media = nn.LayerNorm(dim)
        self.to_latents = nn.Linear(dim, config.num_latents * dim, bias=False)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, features: Float[Tensor, "medium frame patch dim"]
    ) -> Float[Tensor, "medium latent dim"]:
        mean = self.standardize(features).mean(dim=(1, 2))
        latents = self.to_latents(self.norm_media(mean))
        return self.norm(rearrange(latents, "m (l d) -> m l d", d=mean.shape[-1]))


def _only_frame(
    features: Float[Tensor, "medium frame patch dim"], kind: ResamplerKind
) -> Float[Tensor, "medium patch dim"]:
    if features.shape[1] != 1:
        raise ValueError(
            f"frames of a medium: expected 1 with resampler.kind={kind.name}, which keeps every "
            f"token, got {features.shape[1]}"
        )
    return features[:, 0]


AnyResampler = PerceiverResampler | MLPResampler | PoolingResampler | IdentityResampler


def build_resampler(dim: int, config: ResamplerConfig) -> AnyResampler:
    """The resampler that ``config`` describes, for features of width ``dim``."""
    match config.kind:
        case ResamplerKind.perceiver:
            return PerceiverResampler(dim, config)
        case ResamplerKind.mlp:
            return MLPResampler(dim, config)
        case ResamplerKind.pooling:
            return PoolingResampler(dim, config)
        case ResamplerKind.identity:
            return IdentityResampler(dim)
