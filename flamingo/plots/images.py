"""Pictures of pictures: galleries of episodes, what a token sees, attention over an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np
from jaxtyping import Bool, Float
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image

from flamingo.plots.style import BLACK, BLUE, GREY, VERMILLION

SIDE = 224
"""Images are drawn at this size: enough for print, and small in a notebook."""
CAPTION = 22
"""Characters of a line of a caption: as wide as its image."""
HEAT = "YlOrRd"
"""Falls in lightness as it rises: it reads the same without its colours, on paper too."""


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
            panel.imshow(_square(image))
            lines = [fill(line, CAPTION) for line in caption.splitlines()]
            panel.set_title("\n".join(lines), fontsize=7, parse_math=False)
        mark, colour = {True: ("✓ ", BLUE), False: ("✗ ", VERMILLION), None: ("", BLACK)}[
            exhibit.right
        ]
        row[-1].text(
            0, 0.5, f"{mark}{exhibit.said}", color=colour, fontsize=9, va="center", parse_math=False
        )
    return figure


def plot_attention(
    images: Sequence[Image.Image],
    maps: Sequence[Float[np.ndarray, "layer height width"]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
) -> Figure:
    """A row a token: its image, and over a grey copy what each layer attends to.

    Shades are multiples of an even spread over the patches (1: no more than any other patch), on
    one scale for the whole figure, by square root, for most of it is far below the highest; what
    is not attended to is clear. Patches are drawn as they are, not smoothed. The images must be
    as the encoder saw them: squeezed or cropped to its input. ``columns`` names the layers.

    Raises ``ValueError`` for lists of unequal length, or without any.
    """
    if not images or not len(images) == len(maps) == len(rows):
        raise ValueError(
            f"images, maps, rows: expected equally many, at least one, got {len(images)}, "
            f"{len(maps)}, {len(rows)}"
        )
    if any(len(own) != len(columns) for own in maps):
        raise ValueError(f"columns: expected {len(maps[0])}, one a layer, got {len(columns)}")
    heat = [np.asarray(own) * own.shape[-1] * own.shape[-2] for own in maps]
    scale = PowerNorm(0.5, 0, max(1.0, max(float(own.max()) for own in heat)))
    figure = Figure(
        figsize=(1.25 * (len(columns) + 1) + 1.2, 1.35 * len(rows) + 0.4), layout="constrained"
    )
    axes = figure.subplots(len(rows), len(columns) + 1, squeeze=False)
    for line, image, own, name in zip(axes, images, heat, rows, strict=True):
        for panel in line:
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_visible(False)
        shown = _square(image)
        line[0].imshow(shown)
        line[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center", parse_math=False)
        for panel, layer in zip(line[1:], own, strict=True):
            panel.imshow(shown.convert("L"), cmap="gray", vmin=-160, vmax=255)
            panel.imshow(
                layer,
                cmap=HEAT,
                norm=scale,
                alpha=0.9 * np.asarray(scale(layer)),
                extent=(-0.5, SIDE - 0.5, SIDE - 0.5, -0.5),
                interpolation="nearest",
            )
    for panel, title in zip(axes[0], ["image", *columns], strict=True):
        panel.set_title(title, fontsize=8, parse_math=False)
    bar = figure.colorbar(
        ScalarMappable(scale, colormaps[HEAT]), ax=axes, shrink=0.8, aspect=25, pad=0.02
    )
    bar.set_label("attention, × even spread", fontsize=8)
    bar.ax.tick_params(labelsize=8)
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
            thumbnail = OffsetImage(np.asarray(_square(image)), zoom=34 / SIDE)
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


def _square(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
