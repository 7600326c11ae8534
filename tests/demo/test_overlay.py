"""What is drawn over an image."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from flamingo.demo.overlay import SIDE, overlay, seen_image
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


def test_colour_is_where_the_attention_is_and_the_rest_is_grey() -> None:
    attention = torch.zeros(4, 4)
    attention[0, 3] = 0.2  # its scale is its own: the strongest place has full colour
    drawn = overlay(Image.new("RGB", (32, 32), (90, 90, 90)), attention)
    assert drawn.size == (SIDE, SIDE)
    assert drawn.getpixel((10, SIDE - 10)) == (90, 90, 90)
    red, green, blue = drawn.getpixel((SIDE - SIDE // 8, SIDE // 8))
    assert red > 180 and green > 170 and blue < 80, "viridis ends in yellow"


def test_no_attention_leaves_the_image_in_grey() -> None:
    drawn = np.asarray(overlay(Image.new("RGB", (32, 16), "red"), torch.zeros(2, 4)))
    assert drawn.shape == (SIDE // 2, SIDE, 3)
    assert (drawn == 76).all(), "the luminance of red"
