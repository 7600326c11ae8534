"""Attention over images: how it is drawn, by itself and in a figure."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flamingo.plots import plot_attention
from flamingo.plots.attention import attention_scale, in_even_spreads, overlay

IMAGE = Image.new("RGB", (40, 20), "red")


def lightness(colour: tuple[int, int, int]) -> float:
    """CIELAB's L*, 0 to 100, of an sRGB colour."""
    parts = np.array(colour) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16)


def at(image: Image.Image, x: int, y: int) -> tuple[int, int, int]:
    colour = image.getpixel((x, y))
    assert isinstance(colour, tuple)
    red, green, blue = colour
    return red, green, blue


def test_an_even_spread_is_one_everywhere() -> None:
    even = np.full((3, 2, 4), 1 / 8, dtype=np.float32)
    assert (in_even_spreads(even) == 1).all()


def test_colour_is_where_the_attention_is_and_the_rest_is_grey() -> None:
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[0, 3] = 2.5
    drawn = overlay(Image.new("RGB", (32, 32), (0, 0, 0)), heat, attention_scale([heat]), 64)
    assert drawn.size == (64, 64)
    dark = round(0.55 * 255)
    assert at(drawn, 5, 58) == (dark, dark, dark), "a black image becomes a grey one"
    assert at(drawn, 47, 15) == (dark, dark, dark), "patches are not smoothed"
    red, green, blue = at(drawn, 48, 15)
    assert red > 100 and max(green, blue) < 60


def test_no_attention_leaves_the_image_in_grey() -> None:
    none = np.zeros((2, 4), dtype=np.float32)
    drawn = np.asarray(overlay(Image.new("RGB", (32, 16), "red"), none, attention_scale([none])))
    assert drawn.shape == (112, 224, 3)
    assert (drawn == round(255 * 0.55 + 76 * 0.45)).all(), "76: the luminance of red"


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_more_attention_is_darker_on_any_image_so_that_it_is_read_without_colours(grey) -> None:
    heat = np.linspace(0, 9, 101, dtype=np.float32)[None]
    drawn = overlay(
        Image.new("RGB", (101, 1), (grey, grey, grey)), heat, attention_scale([heat]), 101
    )
    steps = np.array([lightness(at(drawn, x, 0)) for x in range(101)])
    rises = (steps - np.minimum.accumulate(steps)).max()
    assert rises < 8, "of 100: hardly seen"
    assert steps[0] - steps[-1] > 25
    assert steps[-1] == steps.min()


def test_a_figure_has_multiples_of_an_even_spread_on_one_scale() -> None:
    even = np.full((2, 2, 2), 0.25, dtype=np.float32)
    sharp = np.zeros((2, 2, 2), dtype=np.float32)
    sharp[:, 0, 1] = 0.75
    figure = plot_attention(
        [IMAGE, IMAGE], [even, sharp], rows=["a", "b"], columns=["layer 1", "layer 3"]
    )
    titles = [panel.get_title() for panel in figure.axes]
    assert titles[:3] == ["image", "layer 1", "layer 3"]
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "attention, × even spread"
    assert bar.get_ylim() == (0, 3)
    square = IMAGE.resize((224, 224))
    scale = attention_scale([np.array([[3.0]])])
    for panel, heat in ((1, np.ones((2, 2))), (4, np.array([[0.0, 3.0], [0.0, 0.0]]))):
        expected = np.asarray(overlay(square, heat, scale))
        shown = np.asarray(figure.axes[panel].images[0].get_array())
        assert (shown == expected).all()


def test_a_figure_of_unequal_lists_is_refused() -> None:
    even = np.full((2, 2, 2), 0.25, dtype=np.float32)
    with pytest.raises(ValueError, match="expected equally many.* got 1, 2, 1"):
        plot_attention([IMAGE], [even, even], rows=["a"], columns=["x", "y"])
    with pytest.raises(ValueError, match="columns: expected 2, one a layer, got 1"):
        plot_attention([IMAGE], [even], rows=["a"], columns=["x"])
