"""Attention drawn over the image as the encoder sees it."""

from __future__ import annotations

import matplotlib
import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flamingo.backbones.vision import VisionEncoder, transform_settings

SIDE = 336
"""Pixels of the longer side of a drawn image."""
OPACITY = 0.75
"""Of the colour where attention is strongest; where there is none the image alone is seen."""


def seen_image(encoder: VisionEncoder, image: Image.Image) -> Image.Image:
    """``image`` as it reaches the encoder: squeezed or cropped as its transform does it.

    The patches of an attention map tile this image, not the one that was uploaded.
    """
    settings = transform_settings(encoder.image_processor)
    pixels = encoder.transform(image).permute(1, 2, 0).numpy()
    if settings.get("do_normalize"):
        pixels = pixels * np.array(settings["image_std"]) + np.array(settings["image_mean"])
    if settings.get("do_rescale"):
        pixels = pixels / settings["rescale_factor"]
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def overlay(image: Image.Image, attention: Float[Tensor, "height width"]) -> Image.Image:
    """``image`` in grey, coloured by how much of the attention each place has.

    A scale of its own, from nothing to the strongest patch; between patches it is interpolated.
    The colours (viridis) are in the same order to the colour-blind and in a grey print.
    """
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    strongest = attention.max().clamp(min=1e-12)
    heat = Image.fromarray((attention / strongest).numpy().astype(np.float32))
    strength = np.asarray(heat.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    colour = matplotlib.colormaps["viridis"](strength)[..., :3] * 255
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC))[..., None]
    weight = (OPACITY * strength)[..., None]
    return Image.fromarray((grey * (1 - weight) + colour * weight).astype(np.uint8))
