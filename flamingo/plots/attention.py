"""Attention drawn over images: one way of drawing, for figures and for single pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from PIL import Image

from flamingo.plots.images import SIDE, square

HEAT = "YlOrRd"
"""Falls in lightness as it rises: it reads the same without its colours, on paper too."""
OPACITY = 0.9
"""Of the colour where attention is strongest; where there is none the image alone is seen."""
BLACK_LEVEL = 0.55
"""What black becomes under the colours: they could not fall in lightness on anything darker."""


def in_even_spreads(attention: Float[np.ndarray, "*layers height width"]) -> np.ndarray:
    """Shares of the attention as multiples of what each patch had if it were spread evenly."""
    return attention * attention.shape[-1] * attention.shape[-2]


def attention_scale(heat: Sequence[Float[np.ndarray, "*layers height width"]]) -> Normalize:
    """From no attention to the most of any patch of ``heat`` (in even spreads; at least 1), by
    square root, for most of it is far below the highest."""
    return PowerNorm(0.5, 0, max([1.0, *(float(own.max()) for own in heat)]))


def overlay(
    image: Image.Image, heat: Float[np.ndarray, "height width"], scale: Normalize, side: int = SIDE
) -> Image.Image:
    """A pale grey copy of ``image`` with the colours of ``heat`` (in even spreads) over it.

    The longer side gets ``side`` pixels. Patches are drawn as they are, not smoothed; what is not
    attended to is clear. The image must be as the encoder saw it: squeezed or cropped to its input.
    """
    factor = side / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.LANCZOS)) / 255
    pale = (BLACK_LEVEL + (1 - BLACK_LEVEL) * grey)[..., None]
    share = np.asarray(scale(heat), dtype=np.float32)
    share = np.asarray(Image.fromarray(share).resize(size, Image.Resampling.NEAREST)).clip(0, 1)
    weight = OPACITY * share[..., None]
    blended = pale * (1 - weight) + colormaps[HEAT](share)[..., :3] * weight
    return Image.fromarray((255 * blended).round().astype(np.uint8))


def plot_attention(
    images: Sequence[Image.Image],
    maps: Sequence[Float[np.ndarray, "layer height width"]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
) -> Figure:
    """A row a token: its image, and over a grey copy what each layer attends to (:func:`overlay`).

    Images as the encoder saw them: :func:`flamingo.backbones.seen.seen_image` crops them as it did.
    Shades are multiples of an even spread over the patches (1: no more than any other patch), on
    one scale for the whole figure. ``columns`` names the layers.

    Raises ``ValueError`` for lists of unequal length, or without any.
    """
    if not images or not len(images) == len(maps) == len(rows):
        raise ValueError(
            f"images, maps, rows: expected equally many, at least one, got {len(images)}, "
            f"{len(maps)}, {len(rows)}"
        )
    if any(len(own) != len(columns) for own in maps):
        raise ValueError(f"columns: expected {len(maps[0])}, one a layer, got {len(columns)}")
    heat = [in_even_spreads(np.asarray(own)) for own in maps]
    scale = attention_scale(heat)
    figure = Figure(
        figsize=(1.25 * (len(columns) + 1) + 1.2, 1.35 * len(rows) + 0.4), layout="constrained"
    )
    axes = figure.subplots(len(rows), len(columns) + 1, squeeze=False)
    for line, image, own, name in zip(axes, images, heat, rows, strict=True):
        for panel in line:
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_visible(False)
        shown = square(image)
        line[0].imshow(shown)
        line[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center", parse_math=False)
        for panel, layer in zip(line[1:], own, strict=True):
            panel.imshow(overlay(shown, layer, scale))
    for panel, title in zip(axes[0], ["image", *columns], strict=True):
        panel.set_title(title, fontsize=8, parse_math=False)
    bar = figure.colorbar(
        ScalarMappable(scale, colormaps[HEAT]), ax=axes, shrink=0.8, aspect=25, pad=0.02
    )
    bar.set_label("attention, × even spread", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure
