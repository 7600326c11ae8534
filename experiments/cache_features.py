"""Encode every training image of a run's sources into the feature cache, before training.

Training does this by itself; use it to prepare a cache on one machine, or before a sweep.
"""

from __future__ import annotations

import torch

from flamingo.backbones import assets
from flamingo.backbones.language import load_tokenizer
from flamingo.backbones.vision import load_vision_encoder
from flamingo.build import feature_cache, open_data
from flamingo.composition import entry_point
from flamingo.config import RunConfig
from flamingo.data.features import FeatureStore
from flamingo.data.mixture import build_sources


def main(config: RunConfig) -> None:
    """Fill the cache. Raises ``ValueError`` or ``OSError`` for what cannot be encoded."""
    store = fill(config)
    print(f"{store.file.folder}: features of {len(store.rows)} images")


def fill(config: RunConfig) -> FeatureStore:
    """The store of the images of ``config``'s sources, filled."""
    tokenizer = load_tokenizer(config.language)
    sources = build_sources(
        config.data,
        config.seed,
        tokenizer,
        easy_vqa_folder=assets.easy_vqa_folder,
        twemoji_folder=assets.twemoji_folder,
        documents=open_data(config.data),
    )
    images = [image for source in sources for image in source.images()]
    encoder = load_vision_encoder(config.vision)
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    return FeatureStore.build(images, encoder, feature_cache(config.data))


if __name__ == "__main__":
    entry_point(main)
