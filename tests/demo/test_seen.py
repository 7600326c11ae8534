"""The image that attention is drawn over."""

from __future__ import annotations

import numpy as np
from PIL import Image

from flamingo.demo.seen import seen_image
from flamingo.testing import IMAGE_SIZE, draw, tiny_vision_encoder


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
