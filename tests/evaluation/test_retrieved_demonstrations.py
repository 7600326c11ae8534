"""From images to plans: what is retrieved resembles the query and is not the query."""

from __future__ import annotations

from pathlib import Path

from flamingo.choices import Exclusion, Strategy
from flamingo.data.features import FeatureStore
from flamingo.evaluation.planning import PlanSettings, Similar, make_plans
from flamingo.evaluation.pool import Listing, by_content
from flamingo.evaluation.prompts import Item
from flamingo.evaluation.retrieval import Index
from flamingo.evaluation.retrieval_features import image_features
from flamingo.evaluation.vector_cache import cached_vectors
from flamingo.evaluation_config import DemonstrationsConfig
from flamingo.testing import synthetic_images, tiny_vision_encoder
from flamingo.types import ImageRef, Media

SHOTS = 4
IMAGES = synthetic_images(120)
COPIES = [ImageRef(f"copy/{image.key}", image.open) for image in IMAGES[:12]]
"""The queries show images of the pool under other names."""


def items(images: list[ImageRef]) -> list[Item]:
    return [Item(i.key, Media((i,)), "what is it?", i.key.split("/")[-2]) for i in images]


def test_rices_by_image_finds_the_same_shapes_and_colours(tmp_path: Path) -> None:
    encoder = tiny_vision_encoder()
    store = FeatureStore.build([*IMAGES, *COPIES], encoder, tmp_path)
    pool, queries = (Listing.of(items(images), by_content) for images in (IMAGES, COPIES))

    def features(kind: str, images: list[ImageRef]):
        return cached_vectors(
            tmp_path,
            kind,
            f"mean of {encoder.fingerprint}",
            [image.key for image in images],
            lambda: image_features([Media((image,)) for image in images], store),
        )

    similar = Similar(Index.build(features("pool", IMAGES)), features("queries", COPIES), "mean")

    def right(strategy: Strategy) -> float:
        config = DemonstrationsConfig(
            strategy=strategy, exclusion=Exclusion.same_content, candidates=16
        )
        settings = PlanSettings(config=config, longest=SHOTS)
        plans = make_plans(settings, "shapes", queries, pool, similar)
        shown = [[pool.labels[pool.place[d]] for d in plan.demonstrations] for plan in plans]
        for plan, image in zip(plans, IMAGES, strict=False):
            assert image.key not in plan.demonstrations, "its own image under another name"
        hits = [own.count(label) for own, label in zip(shown, queries.labels, strict=True)]
        return sum(hits) / (SHOTS * len(plans))

    # Twelve kinds: a random demonstration is of the query's with probability 9 / 119.
    assert right(Strategy.random) < 0.25
    assert right(Strategy.rices) > 0.5
    assert right(Strategy.random) < right(Strategy.diverse)
