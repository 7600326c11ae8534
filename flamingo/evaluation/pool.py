"""What plans need to know of items: their ids, which images they show, and their labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from flamingo.data.features import content_hash
from flamingo.evaluation.prompts import Item
from flamingo.types import ImageRef

Identity = Callable[[ImageRef], str]
"""What makes two images one and the same: equal identities."""


def by_key(image: ImageRef) -> str:
    """Images are the same if their keys are (``Exclusion.same_image``)."""
    return image.key


def by_content(image: ImageRef) -> str:
    """Images are the same if their size and pixels are (``Exclusion.same_content``).

    Opens the image. Copies that were scaled or compressed anew are different images.
    """
    return content_hash(image.open().convert("RGB")).hex()


@dataclass(frozen=True)
class Listing:
    """The items of a pool, or the queries of a benchmark, in a fixed order.

    ``images`` holds the identities of the images each item shows, ``labels`` what a balanced choice
    balances (the answer). Raises ``ValueError`` for an id that is there twice.
    """

    ids: Sequence[str]
    images: Sequence[tuple[str, ...]]
    labels: Sequence[str]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.images) == len(self.labels):
            raise ValueError(
                f"listing: expected images and labels for each of {len(self.ids)} ids, "
                f"got {len(self.images)} and {len(self.labels)}"
            )
        if len(self.place) < len(self.ids):
            twice = next(name for i, name in enumerate(self.ids) if self.place[name] != i)
            raise ValueError(f"listing.ids: expected each once, got {twice!r} twice")

    @classmethod
    def of(cls, items: Iterable[Item], identity: Identity = by_key) -> Listing:
        """The listing of ``items``; each different image is identified once."""
        known: dict[str, str] = {}

        def identified(image: ImageRef) -> str:
            if image.key not in known:
                known[image.key] = identity(image)
            return known[image.key]

        ids, images, labels = [], [], []
        for item in items:
            frames = () if item.media is None else item.media.frames
            ids.append(item.id)
            images.append(tuple(identified(frame) for frame in frames))
            labels.append(item.answer)
        return cls(ids, images, labels)

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Id to index."""
        return {name: index for index, name in enumerate(self.ids)}

    @cached_property
    def by_image(self) -> Mapping[str, Sequence[int]]:
        """Identity of an image to the indices of the items that show it."""
        places: dict[str, list[int]] = defaultdict(list)
        for index, images in enumerate(self.images):
            for image in images:
                places[image].append(index)
        return dict(places)

    @cached_property
    def by_label(self) -> Mapping[str, Sequence[int]]:
        """Label to the indices of the items that have it, labels in alphabetical order."""
        places: dict[str, list[int]] = defaultdict(list)
        for index, label in enumerate(self.labels):
            places[label].append(index)
        return {label: places[label] for label in sorted(places)}

    def excluded(self, query: str, images: Iterable[str]) -> frozenset[int]:
        """Indices of what a query may not get: itself, and what shows one of ``images``.

        The ids of queries and pool are of one namespace: equal ids are one item.
        """
        own = [self.place[query]] if query in self.place else []
        return frozenset(own).union(*(self.by_image.get(image, ()) for image in images))
