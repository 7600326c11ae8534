"""Image classification: any directory with one sub-directory of images a class.

ImageNet, iNaturalist, the Caltech birds and most others come so, or unpack to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from flamingo.data.concepts import IMAGE_SUFFIXES
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_unique, image_file, read_json_table
from flamingo.images import open_image
from flamingo.types import ImageRef


def read_image_folder(folder: Path, *, name: str, class_names: Path | None = None) -> list[Example]:
    """The images of a split, by class and then by file name, without a question.

    The answer is the class, the candidates are all classes of the split in alphabetical order of
    their folders. ``class_names`` is a JSON object from folder to class name
    (``{"n01440764": "tench"}``) for where folders have no readable names. An example's id is
    ``{folder}/{file}``, its image is keyed ``{name}/{id}``: two splits need two names
    (``imagenet/train``, ``imagenet/val``), and :func:`one_key_a_file` for files that both have. It
    is opened where links lead to. Hidden files are ignored.

    Raises ``ValueError`` naming the place for no directory, no classes, a class without images, a
    file that is no image by its suffix, and classes without a name or of the same name.
    """
    folders = sorted(entry.name for entry in _entries(folder) if entry.is_dir())
    if not folders:
        raise ValueError(f"{folder}: expected one sub-directory a class, found none")
    labels = dict(zip(folders, folders, strict=True))
    if class_names is not None:
        labels = _named(folders, read_json_table(class_names, str), class_names)
    candidates = tuple(labels.values())
    examples = []
    for own in folders:
        for file, path in _image_files(folder / own).items():
            image = ImageRef(f"{name}/{own}/{file}", partial(open_image, path))
            examples.append(
                Example(
                    id=f"{own}/{file}",
                    images=(image,),
                    question="",
                    answers=(labels[own],),
                    candidates=candidates,
                    cluster=image.key,
                )
            )
    return examples


def read_unlabelled_images(folder: Path, candidates: Sequence[str], *, name: str) -> list[Example]:
    """The images directly in ``folder`` (a test split), to be sorted into ``candidates``.

    An example's id is its file's name, its image is keyed ``{name}/{id}``. Raises ``ValueError`` as
    :func:`read_image_folder`.
    """
    examples = []
    for file, path in _image_files(folder).items():
        image = ImageRef(f"{name}/{file}", partial(open_image, path))
        examples.append(
            Example(
                id=file,
                images=(image,),
                question="",
                candidates=tuple(candidates),
                cluster=image.key,
            )
        )
    return check_unique(examples, folder)


def one_key_a_file(*splits: Sequence[Example]) -> list[list[Example]]:
    """``splits`` as they are, but for files that come again, also by links: keyed as first seen.

    An image is then one cluster, and known as the query's own, also where a folder is both splits.
    (Keys of resolved paths would do the same, but they stand in predictions: once the data had
    moved, all images would be others.)
    """
    keys: dict[str | None, str] = {}

    def keyed(example: Example) -> Example:
        (image,) = example.images
        key = keys.setdefault(image_file(image), image.key)
        if key == image.key:
            return example
        return replace(example, images=(replace(image, key=key),), cluster=key)

    return [[keyed(example) for example in split] for split in splits]


def has_classes(folder: Path) -> bool:
    """Whether there are sub-directories, which are the classes. Raises ``ValueError`` for none."""
    return any(entry.is_dir() for entry in _entries(folder))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a directory, found none")
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _image_files(folder: Path) -> dict[str, str]:
    """Names in alphabetical order, with the paths that links lead to."""
    entries = sorted(_entries(folder), key=lambda entry: entry.name)
    names = [entry.name for entry in entries]
    other = [name for name in names if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES]
    if other or not names:
        found = f"{len(other):,} other file(s) such as {other[0]!r}" if other else "none"
        raise ValueError(f"{folder}: expected images alone, found {found}")
    real = os.path.realpath(folder)
    # Listing a folder says which files are links: no others are looked at, of maybe millions.
    return {
        entry.name: os.path.realpath(entry)
        if entry.is_symlink()
        else os.path.join(real, entry.name)
        for entry in entries
    }


def _named(folders: Sequence[str], names: Mapping[str, str], source: Path) -> dict[str, str]:
    unnamed = [folder for folder in folders if folder not in names]
    if unnamed:
        raise ValueError(
            f"{source}: expected a name for each of the {len(folders)} classes, "
            f"found none for {len(unnamed)}, such as {unnamed[0]!r}"
        )
    labels = {folder: names[folder] for folder in folders}
    by_name: dict[str, str] = {}
    for folder, label in labels.items():
        if label in by_name:
            raise ValueError(
                f"{source}: expected different names, got {label!r} for {by_name[label]!r} "
                f"and {folder!r}"
            )
        by_name[label] = folder
    return labels
