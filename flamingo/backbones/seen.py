"""An image as the encoder sees it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from flamingo.backbones.vision import VisionEncoder, transform_settings


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
