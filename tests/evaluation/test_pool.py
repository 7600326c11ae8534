"""Same images are found by name, by content, and through the feature store."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from PIL import Image

from flamingo.evaluation.pool import Listing, by_content, by_key
from flamingo.evaluation.prompts import Item
from flamingo.testing import synthetic_images
from flamingo.types import ImageRef, Media

IMAGES = synthetic_images(4)
COPY = ImageRef("copy/of/0", IMAGES[0].open)


def item(name: str, *frames: ImageRef, answer: str = "") -> Item:
    return Item(name, Media(frames) if frames else None, "", answer)


ITEMS = [
    item("a", IMAGES[0], answer="yes"),
    item("b", IMAGES[1], answer="no"),
    item("c", COPY, answer="no"),
    item("d", IMAGES[2], IMAGES[0], answer="yes"),
    item("e", answer="no"),
]


def test_a_query_may_not_get_itself_nor_what_shows_its_image() -> None:
    pool = Listing.of(ITEMS)
    (query,) = Listing.of([item("q", IMAGES[0])]).images
    assert pool.excluded("q", query) == {0, 3}
    assert pool.excluded("b", query) == {0, 1, 3}
    assert pool.excluded("e", ()) == {4}
    assert pool.excluded("q", ()) == frozenset()


def test_copies_under_other_names_are_the_same_by_content() -> None:
    (query,) = Listing.of([item("q", COPY)], by_content).images
    assert Listing.of(ITEMS, by_content).excluded("q", query) == {0, 2, 3}
    assert Listing.of(ITEMS, by_key).excluded("q", [COPY.key]) == {2}


def test_each_image_is_opened_once() -> None:
    opened = []

    def opening(key: str) -> Callable[[], Image.Image]:
        def open_image() -> Image.Image:
            opened.append(key)
            return Image.new("RGB", (2, 2))

        return open_image

    reference = ImageRef("x", opening("x"))
    listing = Listing.of([item("a", reference), item("b", reference)], by_content)
    assert opened == ["x"]
    assert listing.excluded("q", listing.images[0]) == {0, 1}


def test_labels_are_listed_in_alphabetical_order() -> None:
    pool = Listing.of(ITEMS)
    assert list(pool.by_label.items()) == [("no", [1, 2, 4]), ("yes", [0, 3])]
    assert pool.place == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}


def test_an_id_that_is_there_twice_is_named() -> None:
    with pytest.raises(ValueError, match="listing.ids: expected each once, got 'a' twice"):
        Listing.of([*ITEMS, ITEMS[0]])
    with pytest.raises(ValueError, match="labels for each of 2 ids, got 2 and 1"):
        Listing(["a", "b"], [(), ()], ["x"])
