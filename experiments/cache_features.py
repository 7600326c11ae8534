"""Encode every training image of a run's sources into the feature cache, before training.

Training does this by itself; use it to prepare a cache on one machine, or before a sweep.
"""

from __future__ import annotations

from flamingo.backbones import assets
from flamingo.backbones.language import load_tokenizer
from flamingo.backbones.precision import available_device
from flamingo.backbones.vision import load_vision_encoder
from flamingo.build import feature_cache, open_data
from flamingo.command_line import entry_point
from flamingo.config import RunConfig
from flamingo.data.features import FeatureStore
from flamingo.data.mixture import build_sources
from flamingo.images import BLANK


def main(config: RunConfig) -> None:
    """Fill the cache. Raises ``ValueError`` or ``OSError`` for what cannot be encoded."""
    store = fill(config)
    print(f"{store.file.folder}: features of {len(store.rows)} images")


def fill(config: RunConfig) -> FeatureStore:
    """The store of the images of ``config``'s sources, filled.

    Raises ``ValueError`` where there are none, or where training would not use it.
    """
    if not config.data.cache_features:
        raise ValueError("data.cache_features: expected true (training would not use the cache)")
    tokenizer = load_tokenizer(config.language)
    sources = build_sources(
        config.data,
        config.seed,
        tokenizer,
        easy_vqa_folder=assets.easy_vqa_folder,
        twemoji_folder=assets.twemoji_folder,
        documents=open_data(config.data),
    )
    images = [BLANK, *(image for source in sources for image in source.images())]
    if len(images) == 1:
        raise ValueError(
            "data: expected a source whose images are known beforehand (easy_vqa or binding), got "
            f"{', '.join(source.name for source in sources) or 'none'}: images of streams are "
            "encoded as they come"
        )
    encoder = load_vision_encoder(config.vision)
    encoder.to(available_device())
    return FeatureStore.build(images, encoder, feature_cache(config.data))


if __name__ == "__main__":
    entry_point(main, interrupted="The same command continues.")
