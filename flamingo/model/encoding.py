"""From images to the latents and the keys and values that text reads."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from flamingo.backbones.vision import VisionEncoder
from flamingo.model.configuration import FlamingoConfig
from flamingo.model.cross_attention import GatedCrossAttentionBlock
from flamingo.model.media import MediaState, ProjectedMedia, check_media_counts, check_projected
from flamingo.model.reading import KeysValues
from flamingo.model.resampler import AnyResampler


class FlamingoMedia(PreTrainedModel):
    """A model's media in their three forms (pixels, features, latents), encoded and projected."""

    config_class = FlamingoConfig
    vision_encoder: VisionEncoder | None
    resampler: AnyResampler
    cross_attention: nn.ModuleDict

    @property
    def blocks(self) -> dict[int, GatedCrossAttentionBlock]:
        """The gated blocks by the decoder layer that each stands before."""
        return {int(i): block for i, block in self.cross_attention.items()}  # type: ignore[misc]

    def is_image_token(
        self, input_ids: Int[Tensor, "row token"], attention_mask: Int[Tensor, "row all"] | None
    ) -> Bool[Tensor, "row token"]:
        """Where a medium stands: ``<image>`` tokens, except those among padding.

        ``attention_mask`` may cover a cached prefix before ``input_ids``.
        """
        is_image = input_ids == self.config.image_token_id
        if attention_mask is not None:
            is_image = is_image & attention_mask[:, -input_ids.shape[1] :].bool()
        return is_image

    def encode_media(
        self,
        *,
        vision_features: Float[Tensor, "batch image frame patch dim"] | None = None,
        pixel_values: Float[Tensor, "batch image frame 3 height width"] | None = None,
    ) -> Float[Tensor, "batch image latent dim"]:
        """Latents of every medium given, to be reused as ``media_latents``."""
        media = pixel_values if vision_features is None else vision_features
        if media is None:
            raise ValueError("encode_media: expected vision_features or pixel_values, got neither")
        flat = self._encode(media.flatten(0, 1), are_pixels=vision_features is None)
        return flat.unflatten(0, tuple(media.shape[:2]))

    def _encode(self, media: Tensor, *, are_pixels: bool) -> Float[Tensor, "medium latent dim"]:
        media = self.encode_pixels(media) if are_pixels else media
        if media.shape[-1] != self.config.vision_dim:
            raise ValueError(
                f"vision_features: expected width {self.config.vision_dim}, got {media.shape[-1]}"
            )
        return self.resampler(media)

    def encode_pixels(
        self, pixels: Float[Tensor, "medium frame 3 height width"]
    ) -> Float[Tensor, "medium frame patch dim"]:
        """The vision features of media. Raises ``ValueError`` for a model without an encoder."""
        if self.vision_encoder is None:
            raise ValueError(
                "pixel_values: expected vision_features (this model was built without a vision "
                "encoder), got pixels"
            )
        patches = self.vision_encoder(pixels.flatten(0, 1))
        return rearrange(patches, "(m f) p d -> m f p d", m=len(pixels))

    @torch.no_grad()
    def project_media(self, latents: Float[Tensor, "medium latent dim"]) -> dict[int, KeysValues]:
        """Keys and values of media for every gated block, by its decoder layer.

        For media that are read again and again: as ``projected_media``
        (:class:`flamingo.model.media.ProjectedMedia`) they are neither encoded nor projected again.
        """
        return {index: block.project_media(latents) for index, block in self.blocks.items()}

    def with_new_media(
        self,
        state: MediaState,
        counts: Int[Tensor, " row"],
        projected: ProjectedMedia | None,
        *media: Tensor | None,
    ) -> MediaState:
        """``state`` and behind it what was given, in one of the forms that :meth:`forward` takes.

        ``counts`` says how many media the new text of each row names. Raises ``ValueError`` for
        fewer media, for several forms of them, and for rows that are not those of ``state``.
        """
        if projected is not None:
            check_projected(projected, counts, media)
            return state.append_projected(projected)
        new = self.real_media(counts, *media)
        return state if new is None else state.append(*new, self.blocks)

    def real_media(
        self,
        counts: Int[Tensor, " row"],
        pixel_values: Tensor | None,
        vision_features: Tensor | None,
        media_latents: Tensor | None,
    ) -> tuple[Float[Tensor, "medium latent dim"], Bool[Tensor, "row image"]] | None:
        """Latents of the media that ``<image>`` tokens name, and where they are in the batch.

        Padding (media beyond a row's ``counts``) is neither encoded nor resampled.
        """
        given = {
            "pixel_values": pixel_values,
            "vision_features": vision_features,
            "media_latents": media_latents,
        }
        given = {name: tensor for name, tensor in given.items() if tensor is not None}
        if len(given) > 1:
            raise ValueError(f"media: expected at most one of its three forms, got {sorted(given)}")
        if not given:
            return None
        ((name, tensor),) = given.items()
        if len(tensor) != len(counts):
            raise ValueError(
                f"{name}: expected {len(counts)} rows, as input_ids, got {len(tensor)}"
            )
        width = tensor.shape[1]
        check_media_counts(counts, torch.full_like(counts, width))
        present = torch.arange(width, device=counts.device) < counts[:, None]
        real = tensor.flatten(0, 1) if bool(present.all()) else tensor[present]
        if len(real) == 0:
            return None
        if name == "media_latents":
            return real, present
        return self._encode(real, are_pixels=name == "pixel_values"), present
