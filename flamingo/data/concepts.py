"""Concepts: things with several images each, split into those seen in training and held out."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flamingo.choices import Collection
from flamingo.data.rendering import render_view, view_key
from flamingo.data.sources.easy_vqa import COLOURS, SHAPES, image_ref, load_questions
from flamingo.images import open_image
from flamingo.types import ImageRef

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
SPLIT_SEED = 0
"""The split is a property of the collection, not of a run: every run and evaluation agrees."""


@dataclass(frozen=True, slots=True)
class Concept:
    """A thing that can be shown in several ways: ``views`` are different images of it."""

    name: str
    views: tuple[ImageRef, ...]

    def __post_init__(self) -> None:
        if not self.views:
            raise ValueError(f"concept {self.name!r}: expected at least one view, got none")


@dataclass(frozen=True, slots=True)
class ConceptSet:
    """The concepts of a collection; training sees ``seen`` alone. Each list is sorted by name."""

    seen: tuple[Concept, ...]
    held_out: tuple[Concept, ...]

    @property
    def all(self) -> tuple[Concept, ...]:
        """Both halves, sorted by name."""
        return tuple(sorted(self.seen + self.held_out, key=lambda concept: concept.name))


def load_concepts(
    collection: Collection,
    *,
    held_out: int,
    views: int,
    path: str | None,
    easy_vqa_folder: Callable[[], Path],
    twemoji_folder: Callable[[], Path],
    easy_vqa_split: str = "train",
) -> ConceptSet:
    """The concepts of ``collection``, of which ``held_out`` are held out.

    ``views`` counts the renderings of each emoji, ``path`` is the directory of
    ``Collection.folder``, ``easy_vqa_split`` (``train`` or ``test``) says which images easy-VQA's
    concepts show. Only the folder that is needed is asked for. Raises ``ValueError`` if there are
    fewer than ``held_out`` concepts.
    """
    match collection:
        case Collection.twemoji:
            concepts = twemoji_concepts(twemoji_folder(), views)
        case Collection.easy_vqa_concepts:
            concepts = easy_vqa_concepts(easy_vqa_folder(), easy_vqa_split)
        case Collection.folder:
            if path is None:
                raise ValueError("path: expected a directory for collection=folder, got none")
            concepts = folder_concepts(Path(path))
    return split_concepts(concepts, held_out)


def split_concepts(
    concepts: Sequence[Concept], held_out: int, seed: int = SPLIT_SEED
) -> ConceptSet:
    """Hold out the ``held_out`` concepts whose hashed names come first.

    The order is by hash of the name alone: a larger ``held_out`` holds out the same and more, and
    adding a class to a folder moves few others.
    """
    if not 0 <= held_out <= len(concepts):
        raise ValueError(f"held_out: expected 0 to {len(concepts)} concepts, got {held_out}")
    ranked = sorted(
        concepts,
        key=lambda concept: hashlib.sha256(f"concept {seed} {concept.name}".encode()).digest(),
    )
    return ConceptSet(
        seen=tuple(sorted(ranked[held_out:], key=lambda concept: concept.name)),
        held_out=tuple(sorted(ranked[:held_out], key=lambda concept: concept.name)),
    )


# ---------------------------------------------------------------------------- Twemoji

# Pictures of Twemoji whose code point got its name after Unicode 14, or has none. They are left
# out, so that the concepts are the same under every version of Python.
_AFTER_UNICODE_14 = frozenset(
    """
    1f6d8 1f6dc 1fa75 1fa76 1fa77 1fa87 1fa88 1fa89 1fa8a 1fa8e 1fa8f 1faad 1faae 1faaf 1fabb
    1fabc 1fabd 1fabe 1fabf 1fac6 1fac8 1facd 1face 1facf 1fada 1fadb 1fadc 1fadf 1fae8 1fae9
    1faea 1faef 1faf7 1faf8 e50a
    """.split()
)


def twemoji_concepts(folder: Path, views: int) -> list[Concept]:
    """Emoji of one code point, named by the Unicode standard, in ``views`` random renderings.

    ``folder`` holds PNGs named ``<code points>.png``. Left out are flag letters, skin tones and
    the Latin-1 signs (copyright, registered). Twemoji's graphics are CC-BY 4.0.
    """
    concepts = []
    for path in sorted(folder.glob("*.png")):
        name = _emoji_name(path.stem)
        if name is not None:
            references = (
                ImageRef(view_key(path.stem, view), partial(render_view, path, view))
                for view in range(views)
            )
            concepts.append(Concept(name, tuple(references)))
    if not concepts:
        raise ValueError(f"{folder}: expected emoji as <code point>.png, found none")
    return concepts


def _emoji_name(stem: str) -> str | None:
    if not re.fullmatch(r"[0-9a-f]{4,6}", stem) or stem in _AFTER_UNICODE_14:
        return None
    name = unicodedata.name(chr(int(stem, 16)), "")
    part = name.startswith(("REGIONAL INDICATOR", "EMOJI MODIFIER"))
    return name.lower() if name and not part else None


# ---------------------------------------------------------------------------- easy-VQA


def easy_vqa_concepts(folder: Path, split: str = "train") -> list[Concept]:
    """easy-VQA's 24 combinations of shape and colour, such as ``teal circle``.

    An image's shape and colour are what its questions and answers say. About a tenth of the images
    has no question that tells both; those are not used.
    """
    said: dict[int, set[str]] = defaultdict(set)
    for question in load_questions(folder, split):
        words = set(re.findall("[a-z]+", question.question))
        if question.answer not in ("yes", "no"):
            said[question.image_id] |= words | {question.answer}
        elif (question.answer == "yes") != bool(words & {"no", "not"}):
            said[question.image_id] |= words
    images: dict[str, list[ImageRef]] = defaultdict(list)
    for image_id, words in sorted(said.items()):
        colours, shapes = words & set(COLOURS), words & set(SHAPES)
        if len(colours) > 1 or len(shapes) > 1:
            raise ValueError(
                f"{folder}/{split}/questions.json: expected one shape of one colour in image "
                f"{image_id}, the answers say {sorted(colours | shapes)}"
            )
        if colours and shapes:
            images[f"{colours.pop()} {shapes.pop()}"].append(image_ref(folder, split, image_id))
    return [Concept(name, tuple(views)) for name, views in sorted(images.items())]


# ---------------------------------------------------------------------------- any folder


def folder_concepts(folder: Path) -> list[Concept]:
    """One concept for each sub-directory of ``folder``, its images the views.

    Hidden files and directories are ignored. Raises ``ValueError`` naming the place for no
    directory, no classes, a class of fewer than two images, and a file that is no image by its
    suffix; a file that cannot be decoded is named when it is opened.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a directory with one sub-directory a class")
    classes = sorted(path for path in _visible(folder) if path.is_dir())
    if not classes:
        raise ValueError(f"{folder}: expected one sub-directory a class, found none")
    return [_folder_concept(path) for path in classes]


def _folder_concept(folder: Path) -> Concept:
    files = sorted(_visible(folder))
    other = [path.name for path in files if path.suffix.lower() not in IMAGE_SUFFIXES]
    if other:
        raise ValueError(
            f"{folder}: expected images alone, found {len(other)} other file(s) such as "
            f"{other[0]!r}"
        )
    if len(files) < 2:
        raise ValueError(f"{folder}: expected at least two images of a class, found {len(files)}")
    references = (ImageRef(f"folder/{path.resolve()}", partial(open_image, path)) for path in files)
    return Concept(folder.name, tuple(references))


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]
