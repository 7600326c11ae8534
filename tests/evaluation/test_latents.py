"""Latents: each medium once, the same bits in any company, forgotten by size and use."""

from __future__ import annotations

import torch

from flamingo.data.features import PixelLoader
from flamingo.evaluation.latents import MediaLatents
from flamingo.testing import synthetic_images
from flamingo.types import Media

from . import tiny

MEDIA = [Media((image,)) for image in synthetic_images(6)]
MODEL = tiny.model()
BYTES = 2 * 24 * 4
"""Of a medium's latents: 2 of 24 fp32 numbers."""


class Counted:
    """A loader of features that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._load = tiny.load_media()

    def __call__(self, media):
        self.asked += [MEDIA.index(medium) for medium in media]
        return self._load(media)


def test_each_medium_is_loaded_once() -> None:
    load = Counted()
    latents = MediaLatents(MODEL, load)
    latents.prepare(MEDIA[:3])
    rows = latents.rows([MEDIA[:2], [MEDIA[2], MEDIA[0], MEDIA[3]]])
    latents.rows([MEDIA[:4]])
    assert load.asked == [0, 1, 2, 3]
    assert rows.shape == (2, 3, 2, 24)
    assert torch.equal(rows[0, 0], rows[1, 1])
    assert not rows[0, 2].any(), "padding"


def test_latents_are_the_same_bits_in_any_company() -> None:
    together = MediaLatents(MODEL, tiny.load_media()).rows([MEDIA])
    for number, medium in enumerate(MEDIA):
        alone = MediaLatents(MODEL, tiny.load_media()).rows([[medium]])
        assert torch.equal(alone[0, 0], together[0, number])


def test_they_are_the_model_s_own() -> None:
    features = tiny.load_media()(MEDIA)[None]
    with torch.no_grad():
        expected = MODEL.encode_media(vision_features=features)
    assert torch.allclose(MediaLatents(MODEL, tiny.load_media()).rows([MEDIA]), expected, atol=1e-6)


def test_from_pixels_they_are_encoded_once_too() -> None:
    encoder = MODEL.vision_encoder
    assert encoder is not None
    counts = []
    handle = encoder.register_forward_hook(lambda m, given, _: counts.append(len(given[0])))
    latents = MediaLatents(MODEL, PixelLoader(encoder.transform))
    rows = latents.rows([MEDIA[:2], MEDIA[1:3]])
    handle.remove()
    assert sum(counts) == 3
    features = MediaLatents(MODEL, tiny.load_media()).rows([MEDIA[:2], MEDIA[1:3]])
    assert torch.allclose(rows, features, atol=1e-2), "features are rounded to half precision"


def test_the_one_that_was_not_shown_for_longest_is_forgotten_first() -> None:
    load = Counted()
    latents = MediaLatents(MODEL, load, capacity=3 * BYTES)
    latents.prepare(MEDIA[:3])
    latents.prepare([MEDIA[0], MEDIA[3]])  # 1 is the oldest now
    assert len(latents) == 3
    latents.prepare([MEDIA[0], MEDIA[2], MEDIA[3]])
    assert load.asked == [0, 1, 2, 3]
    latents.prepare([MEDIA[1]])
    assert load.asked == [0, 1, 2, 3, 1]


def test_a_prompt_may_show_more_than_is_kept() -> None:
    kept = MediaLatents(MODEL, tiny.load_media(), capacity=BYTES)
    nothing = MediaLatents(MODEL, tiny.load_media(), capacity=0)
    everything = MediaLatents(MODEL, tiny.load_media()).rows([MEDIA])
    assert torch.equal(kept.rows([MEDIA]), everything)
    assert torch.equal(nothing.rows([MEDIA]), everything)
    assert (len(kept), len(nothing)) == (1, 0)
