"""Other images in an episode: blank, blurred, swapped with another's, or none at all.

Each function changes the query's medium or the demonstrations' media and nothing else: ids,
questions, answers and the cluster of the standard errors stay. None is returned where there is no
image to change. What is done to a demonstration depends on the query, the demonstration and the
seed, never on the number of shots: the perturbed ``k``-shot set is the last ``k`` of a longer one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from PIL import Image, ImageFilter

from flamingo.evaluation.draws import generator, permutation
from flamingo.evaluation.prompts import Episode, Item
from flamingo.images import BLANK
from flamingo.types import ImageRef, Media

BLUR = 0.1
"""Standard deviation of the Gaussian blur, as a part of the image's shorter side."""

Change = Callable[[Item, Media], Media | None]
"""What an item shows instead of its medium; None: nothing, and no ``<image>`` token."""


def blank_query(episode: Episode) -> Episode | None:
    """Every frame of the query's medium replaced by a uniform grey image."""
    return _query(episode, _blank)


def blank_demonstrations(episode: Episode) -> Episode | None:
    """Every frame of every demonstration replaced by a uniform grey image."""
    return _demonstrations(episode, _blank)


def blur_query(episode: Episode) -> Episode | None:
    """The query's medium behind a Gaussian blur of :data:`BLUR`: layout and colour remain."""
    return _query(episode, _blur)


def blur_demonstrations(episode: Episode) -> Episode | None:
    """The demonstrations' media behind a Gaussian blur of :data:`BLUR`."""
    return _demonstrations(episode, _blur)


def drop_query(episode: Episode) -> Episode | None:
    """The query as text alone: no image, no ``<image>`` token."""
    return _query(episode, _drop)


def drop_demonstrations(episode: Episode) -> Episode | None:
    """The demonstrations as text alone: no images, no ``<image>`` tokens."""
    return _demonstrations(episode, _drop)


def swap_query(
    episode: Episode, donors: Sequence[Media], seed: int, benchmark: str
) -> Episode | None:
    """The query shows another of ``donors``, drawn uniformly.

    Never its own medium again, and one with as many frames. Raises ``ValueError`` if there is none.
    """
    return _query(episode, partial(_swap, episode, donors, seed, benchmark))


def swap_demonstrations(
    episode: Episode, donors: Sequence[Media], seed: int, benchmark: str
) -> Episode | None:
    """Every demonstration shows another of ``donors``, each drawn uniformly on its own.

    Never its own medium nor the query's, and one with as many frames. Raises ``ValueError`` if
    there is none.
    """
    return _demonstrations(episode, partial(_swap, episode, donors, seed, benchmark))


def text_only_zero_shot(episode: Episode) -> Episode | None:
    """What the literature reports as "0-shot": two demonstrations as text alone, then the query.

    The last two demonstrations without images and ``<image>`` tokens (Flamingo, appendix A.2;
    OpenFlamingo's evaluation), counted as 0 shots. The true 0-shot shows no demonstration at all.
    None for an episode of fewer than two.
    """
    if len(episode.demonstrations) < 2:
        return None
    two = tuple(replace(item, media=None) for item in episode.demonstrations[-2:])
    return replace(episode, demonstrations=two, shots=0)


# ---------------------------------------------------------------------------- where


def _query(episode: Episode, change: Change) -> Episode | None:
    if episode.query.media is None:
        return None
    return replace(episode, query=_changed(episode.query, change))


def _demonstrations(episode: Episode, change: Change) -> Episode | None:
    if all(item.media is None for item in episode.demonstrations):
        return None
    demonstrations = tuple(_changed(item, change) for item in episode.demonstrations)
    return replace(episode, demonstrations=demonstrations)


def _changed(item: Item, change: Change) -> Item:
    return item if item.media is None else replace(item, media=change(item, item.media))


# ---------------------------------------------------------------------------- what


def _blank(item: Item, medium: Media) -> Media:
    return Media(tuple(BLANK for _ in medium.frames))


def _drop(item: Item, medium: Media) -> None:
    return None


def _blur(item: Item, medium: Media) -> Media:
    frames = [ImageRef(f"blur/{BLUR}/{f.key}", partial(_blurred, f)) for f in medium.frames]
    return Media(tuple(frames))


def _blurred(frame: ImageRef) -> Image.Image:
    image = frame.open()
    return image.filter(ImageFilter.GaussianBlur(BLUR * min(image.size)))


def _swap(
    episode: Episode,
    donors: Sequence[Media],
    seed: int,
    benchmark: str,
    item: Item,
    medium: Media,
) -> Media:
    draw = generator(seed, benchmark, episode.query.id, item.id, "swap")
    for index in permutation(draw, len(donors)):
        donor = donors[index]
        if len(donor.frames) == len(medium.frames) and donor not in (medium, episode.query.media):
            return donor
    raise ValueError(
        f"donors: expected another medium of {len(medium.frames)} frames for {item.id!r} in query "
        f"{episode.query.id!r} of {benchmark}, got none among {len(donors)}"
    )
