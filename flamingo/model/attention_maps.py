"""Where text looks: cross-attention over a medium's latents, carried on to the image's patches.

:func:`attention_maps` runs one prompt and gives an :class:`AttentionMaps`::

    maps = attention_maps(model, input_ids, tokens=[17, 18], pixel_values=pixels)
    maps.weights    # token x layer x head x medium x latent: what each gated block attends to
    maps.media      # the medium each token belongs to, counted from 0 in reading order
    maps.layers     # the decoder layers with a gated block, the order of the axis "layer"
    maps.over_patches(17)             # layer x height x width, over the token's own medium
    maps.over_patches(17, medium=0)   # over another one that it may see (all-previous media)

A position shows what the model looked at when it read that token; the token *after* it is what was
predicted there. To explain an answer append it to the prompt and ask for the positions from the
prompt's last token to the answer's last but one.

Attention is where a model looks, not proof of why it answers (Jain and Wallace 2019,
arXiv:1902.10186): a closed gate passes nothing on, however sharp its map.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flamingo.model.cross_attention import GatedCrossAttentionBlock, MaskedCrossAttention
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.masking import media_mask, media_time, text_time
from flamingo.model.reading import KeysValues
from flamingo.model.resampler import (
    IdentityResampler,
    MLPResampler,
    PerceiverAttention,
    PerceiverResampler,
    PoolingResampler,
    ResamplerLayer,
)


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention of some tokens of one prompt; float32, on the CPU."""

    tokens: tuple[int, ...]
    """Their positions in the prompt."""
    media: tuple[int, ...]
    """The medium each belongs to, the last one up to it; from 0, in reading order."""
    layers: tuple[int, ...]
    """The decoder layers that a gated block stands before."""
    weights: Float[Tensor, "token layer head medium latent"]
    """Sums to 1 over all the media a token may see; 0 for those that it may not."""
    origins: Float[Tensor, "medium latent frame height width"]
    """The share of each patch in each latent; sums to at most 1 over the patches. Of a perceiver
    what its last layer attends to; what that attends to among the latents is left out."""

    def over_patches(
        self, token: int, *, medium: int | None = None, frame: int = 0
    ) -> Float[Tensor, "layer height width"]:
        """How much each layer, on the mean of its heads, attends to each patch of an image.

        ``sum_l mean_h weights[h, l] origins[l, patch]``: at most 1 in all for a token's only
        medium. ``medium``: the token's own where not given; ``frame``: of a clip.

        Raises ``ValueError`` for a position that is not among ``tokens``, and for a medium or frame
        that the prompt does not have.
        """
        if token not in self.tokens:
            raise ValueError(f"token: expected one of {list(self.tokens)}, got {token}")
        row = self.tokens.index(token)
        medium = self.media[row] if medium is None else medium
        for name, index, size in (
            ("medium", medium, len(self.origins)),
            ("frame", frame, self.origins.shape[2]),
        ):
            if not 0 <= index < size:
                raise ValueError(f"{name}: expected a number from 0 to {size - 1}, got {index}")
        heads = self.weights[row, :, :, medium].mean(dim=1)
        return torch.einsum("dl,lhw->dhw", heads, self.origins[medium, :, frame])


@torch.no_grad()
def attention_maps(
    model: FlamingoForConditionalGeneration,
    input_ids: Int[Tensor, "row token"],
    *,
    tokens: Sequence[int],
    pixel_values: Float[Tensor, "media_row image frame 3 height width"] | None = None,
    vision_features: Float[Tensor, "media_row image frame patch dim"] | None = None,
    grid: tuple[int, int] | None = None,
) -> AttentionMaps:
    """Run one prompt (one row) and say where the text at ``tokens`` looks, block by block.

    The weights are worked out again from the inputs that the model's own attention modules got in
    one forward call; the model computes as ever. An MLP or no resampler: a latent is its own patch.
    A pooling resampler: every latent is made of all patches alike, so the map is flat.

    Args:
        tokens: positions in the prompt, each at or after its first ``<image>``.
        pixel_values, vision_features: one of the two; media beyond the prompt's ``<image>`` tokens
            are left out.
        grid: rows and columns of patches; default: a square. Tokens before the grid (CLS) are read
            by latents too, but are no place in the image: their share is missing in the maps.

    Raises:
        ValueError: for other than one row, tokens that see no medium, neither or both forms of
            media, and features that do not fill ``grid`` or a square.
    """
    if len(input_ids) != 1:
        raise ValueError(f"input_ids: expected one row, got {len(input_ids)}")
    if (pixel_values is None) == (vision_features is None):
        raise ValueError("media: expected pixel_values or vision_features, got both or neither")
    time = text_time(model.is_image_token(input_ids, None))
    count = int(time[0, -1])
    for token in tokens:
        if not 0 <= token < input_ids.shape[1] or time[0, token] == 0:
            raise ValueError(
                f"tokens: expected positions from the first <image> to {input_ids.shape[1] - 1}, "
                f"got {token}"
            )
    blocks = cast(Mapping[str, GatedCrossAttentionBlock], model.cross_attention)
    watched = [block.attention for block in blocks.values()]
    readers: list[PerceiverAttention] = []
    if isinstance(model.resampler, PerceiverResampler):
        readers = [cast(ResamplerLayer, layer).attention for layer in model.resampler.layers]
    if vision_features is None:
        assert pixel_values is not None
        vision_features = model.encode_pixels(pixel_values[0, :count])[None]
    features = vision_features[:, :count]
    height, width = _grid(features.shape[3], model.config.vision, grid)
    with _inputs_of([*watched, *readers]) as seen:
        model(input_ids, vision_features=features, use_cache=False, logits_to_keep=1)

    counts = torch.tensor([count], device=time.device)
    visible = media_mask(time, media_time(counts, count), model.visibility)[0, list(tokens)]
    weights = []
    for attention in watched:
        text, media, _ = seen[attention]
        weights.append(_cross_attention(attention, text, media, visible, tokens))
    latents = [_latent_attention(reader, *seen[reader]) for reader in readers]
    shares = _origins(model.resampler, latents, features[0])
    on_grid = shares.unflatten(-1, tuple(features.shape[2:4]))[..., -height * width :]
    return AttentionMaps(
        tokens=tuple(tokens),
        media=tuple(int(time[0, token]) - 1 for token in tokens),
        layers=tuple(map(int, blocks)),
        weights=torch.stack(weights, dim=1).cpu(),
        origins=on_grid.unflatten(-1, (height, width)).cpu(),
    )


@contextmanager
def _inputs_of(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, tuple[Any, ...]]]:
    """What each module is called with inside the block, by this thread."""
    seen: dict[nn.Module, tuple[Any, ...]] = {}
    here = threading.get_ident()

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() == here:  # others may be using the model meanwhile
            seen[module] = args

    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _cross_attention(
    attention: MaskedCrossAttention,
    text: Float[Tensor, "1 token dim"],
    media: KeysValues,
    visible: Bool[Tensor, "chosen medium"],
    tokens: Sequence[int],
) -> Float[Tensor, "chosen head medium latent"]:
    query = rearrange(attention.queries(text)[0, list(tokens)], "t h d -> h t d")
    latents = media.shape[3]
    key = rearrange(media[0], "m h l d -> h (m l) d")
    scores = torch.einsum("htd,hnd->thn", query.float(), key.float()) * query.shape[-1] ** -0.5
    hidden = ~visible.repeat_interleave(latents, dim=-1)[:, None]
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return weights.unflatten(-1, (-1, latents))


def _origins(
    resampler: nn.Module,
    layers: Sequence[Float[Tensor, "medium latent place_or_latent"]],
    features: Float[Tensor, "medium frame patch dim"],
) -> Float[Tensor, "medium latent place"]:
    """The share of each place (tokens of all frames, flat) in each latent; ``layers``: a
    perceiver's attention."""
    media, places = len(features), features.shape[1] * features.shape[2]
    match resampler:
        case PerceiverResampler():
            return layers[-1][..., :places]
        case MLPResampler() | IdentityResampler():
            return torch.eye(places, device=features.device).expand(media, -1, -1)
        case PoolingResampler():
            latents = resampler.to_latents.out_features // resampler.to_latents.in_features
            return torch.full((media, latents, places), 1 / places, device=features.device)
        case _:
            raise ValueError(
                f"resampler: expected one whose latents' origin is known, got "
                f"{type(resampler).__name__}"
            )


def _latent_attention(
    attention: PerceiverAttention,
    media: Float[Tensor, "medium patch dim"],
    latents: Float[Tensor, "medium latent dim"],
) -> Float[Tensor, "medium latent place_or_latent"]:
    """Mean of the heads: what latents attend to, patches first, then latents."""
    query, key, _ = attention.queries_keys_values(media, latents)
    scores = query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.softmax(dim=-1).mean(dim=1)


def _grid(
    patches: int, vision: Mapping[str, Any] | None, grid: tuple[int, int] | None
) -> tuple[int, int]:
    """Rows and columns of an image's patches; of the encoder's tokens only CLS is no patch."""
    if grid is None:
        leading = int(bool(vision and vision.get("keep_cls")))
        side = math.isqrt(patches - leading)
        grid = (side, side)
    else:
        leading = patches - grid[0] * grid[1]
    if grid[0] * grid[1] + leading != patches or min(*grid, leading + 1) < 1:
        raise ValueError(
            f"grid: expected (rows, columns) that the {patches} tokens of an image fill (default: "
            f"a square), got {grid}"
        )
    return grid
