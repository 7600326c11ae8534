"""The image that attention is drawn over."""

from __future__ import annotations

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessorPil

from flamingo.backbones.seen import seen_image
from flamingo.backbones.vision import VisionEncoder
from flamingo.config import VisionConfig
from flamingo.testing import IMAGE_SIZE, TinyTokens, draw, tiny_vision_encoder


def test_an_image_of_the_encoder_s_size_is_seen_as_it_is() -> None:
    image = draw("red", "circle", 0)
    assert image.size == (IMAGE_SIZE, IMAGE_SIZE)
    seen = np.asarray(seen_image(tiny_vision_encoder(), image)).astype(int)
    assert np.abs(seen - np.asarray(image)).max() <= 1


def test_a_larger_image_is_seen_in_the_encoder_s_size() -> None:
    image = Image.new("RGB", (300, 120), (10, 200, 30))
    seen = seen_image(tiny_vision_encoder(), image)
    assert seen.size == (IMAGE_SIZE, IMAGE_SIZE)
    assert np.abs(np.asarray(seen).astype(int) - (10, 200, 30)).max() <= 1


def test_an_image_that_is_not_square_is_seen_as_the_encoder_crops_it() -> None:
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    encoder = VisionEncoder(
        VisionConfig(name="tiny"),
        TinyTokens(8, 16, 0),
        dim=8,
        patches=16,
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=crop),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, 2 * IMAGE_SIZE, 3), np.uint8)
    seen = np.asarray(seen_image(encoder, Image.fromarray(pixels))).astype(int)
    middle = pixels[:, IMAGE_SIZE // 2 : IMAGE_SIZE // 2 + IMAGE_SIZE]
    assert np.abs(seen - middle).max() <= 1
