"""Pictures of pictures: galleries of episodes, and which image a token sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np
from jaxtyping import Bool
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image

from flamingo.images import as_rgb
from flamingo.plots.style import BLACK, BLUE, GREY, VERMILLION

SIDE = 224
"""Images are drawn at this size: enough for print, and small in a notebook."""
CAPTION = 18
"""Characters of a line of a caption: as wide as its image."""


@dataclass(frozen=True)
class Exhibit:
    """One row of a gallery: images in reading order, a caption below each, and what came of it."""

    images: Sequence[Image.Image]
    captions: Sequence[str]
    said: str
    right: bool | None = None
    """None: not known."""


def plot_gallery(exhibits: Sequence[Exhibit]) -> Figure:
    """A row an exhibit; a tick or cross tells right from wrong beside the colour.

    Raises ``ValueError`` without exhibits, and for one with other than a caption an image.
    """
    if not exhibits:
        raise ValueError("exhibits: expected at least one, got none")
    for place, exhibit in enumerate(exhibits):
        if len(exhibit.images) != len(exhibit.captions):
            raise ValueError(
                f"exhibits[{place}].captions: expected {len(exhibit.images)}, one an image, got "
                f"{len(exhibit.captions)}"
            )
    columns = max(len(exhibit.images) for exhibit in exhibits)
    figure = Figure(figsize=(1.25 * (columns + 1.4), 1.55 * len(exhibits)), layout="constrained")
    axes = figure.subplots(
        len(exhibits), columns + 1, squeeze=False, width_ratios=[1] * columns + [1.4]
    )
    for row, exhibit in zip(axes, exhibits, strict=True):
        for panel in row:
            panel.set_axis_off()
        # Queries end their rows: rows stand flush right.
        shown = row[columns - len(exhibit.images) : columns]
        for panel, image, caption in zip(shown, exhibit.images, exhibit.captions, strict=True):
            panel.imshow(square(image))
            lines = [fill(line, CAPTION) for line in caption.splitlines()]
            panel.set_title("\n".join(lines), fontsize=7, parse_math=False)
        mark, colour = {True: ("✓ ", BLUE), False: ("✗ ", VERMILLION), None: ("", BLACK)}[
            exhibit.right
        ]
        row[-1].text(
            0, 0.5, f"{mark}{exhibit.said}", color=colour, fontsize=9, va="center", parse_math=False
        )
    return figure


def plot_visibility(
    masks: Mapping[str, Bool[np.ndarray, "token medium"]],
    tokens: Sequence[str],
    images: Sequence[Image.Image],
) -> Figure:
    """Which image (across) each token (down) sees; a panel for each of ``masks``, by its title."""
    figure = Figure(figsize=(2 + 1.3 * len(images), 1 + 0.24 * len(tokens)), layout="constrained")
    panels = figure.subplots(1, len(masks), sharey=True, squeeze=False)[0]
    for panel, (title, mask) in zip(panels, masks.items(), strict=True):
        panel.pcolormesh(mask, cmap=ListedColormap(["#eeeeee", BLUE]), edgecolors="white", vmax=1)
        for place, image in enumerate(images):
            thumbnail = OffsetImage(np.asarray(square(image)), zoom=34 / SIDE)
            panel.add_artist(
                AnnotationBbox(
                    thumbnail,
                    (place + 0.5, 1),
                    (0, 22),
                    panel.get_xaxis_transform(),
                    boxcoords="offset points",
                    frameon=False,
                )
            )
        panel.set_title(title, pad=46, fontsize=10)
        panel.set_xticks([place + 0.5 for place in range(len(images))], range(1, len(images) + 1))
        panel.set_xlabel("media time", fontsize=9)
        panel.tick_params(length=0)
        panel.spines[:].set_color(GREY)
    panels[0].set_yticks([place + 0.5 for place in range(len(tokens))], tokens, parse_math=False)
    panels[0].invert_yaxis()
    return figure


def square(image: Image.Image) -> Image.Image:
    """``image`` as it is drawn: squeezed to :data:`SIDE`, whatever its shape."""
    return as_rgb(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
