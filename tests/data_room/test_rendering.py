from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flamingo.data.rendering import CANVAS, compose, render_view


def test_a_view_is_always_the_same_and_views_differ(twemoji: Path) -> None:
    path = twemoji / "1f600.png"
    first, again = render_view(path, 0), render_view(path, 0)
    assert first.mode == "RGB" and first.size == (CANVAS, CANVAS)
    assert first.tobytes() == again.tobytes()
    views = {render_view(path, view).tobytes() for view in range(6)}
    views |= {render_view(twemoji / "1f601.png", view).tobytes() for view in range(6)}
    assert len(views) == 12


def test_the_emoji_lies_whole_on_one_background_colour() -> None:
    opaque = Image.new("RGBA", (72, 72), (255, 0, 255, 255))
    for seed in range(40):
        pixels = np.asarray(compose(opaque, np.random.default_rng(seed))).astype(int)
        emoji = (abs(pixels - [255, 0, 255]) <= 2).all(axis=2)
        # A rotated square never fills the canvas's corners, and shows its area nearly whole.
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert (corners == corners[0]).all()
        background = (abs(pixels - corners[0]) <= 2).all(axis=2)
        assert 78**2 <= emoji.sum() <= 132**2
        assert (emoji | background).mean() > 0.9


def test_transparent_pixels_show_the_background() -> None:
    clear = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
    colours = compose(clear, np.random.default_rng(3)).getcolors()
    assert colours is not None and len(colours) == 1


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "1f600.png"
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1f600\.png: expected a readable image"):
        render_view(path, 0)
