"""Captions of COCO and Flickr30k in the splits of Karpathy & Fei-Fei (2015).

``dataset_coco.json`` and ``dataset_flickr30k.json`` of
cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip; for COCO's test server also the
official ``image_info_test2014.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flamingo.choices import KarpathySplit
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import (
    Records,
    check_unique,
    image_ref,
    pair_answers,
    read_json,
    write_json,
)


@dataclass(frozen=True, slots=True)
class _Sentence:
    raw: str


@dataclass(frozen=True, slots=True)
class _Image:
    filename: str
    split: KarpathySplit
    sentences: list[_Sentence]
    filepath: str = ""
    cocoid: int | None = None


@dataclass(frozen=True, slots=True)
class _File:
    images: Records[_Image]


@dataclass(frozen=True, slots=True)
class _TestImage:
    id: int
    file_name: str


@dataclass(frozen=True, slots=True)
class _TestFile:
    images: Records[_TestImage]


def read_karpathy(
    captions: Path, images: Path, splits: Sequence[KarpathySplit], *, name: str
) -> list[Example]:
    """The images of ``splits`` in the file's order, each with its captions, without a question.

    ``images`` holds ``{filepath}/{filename}``: for COCO the folder of ``train2014`` and
    ``val2014``, for Flickr30k that of the images. An example's id is its ``cocoid`` or, without
    one, its file's name without suffix; images are keyed ``{name}/{filepath}/{id}``. Captions are
    the ``raw`` ones without the white space around them (COCO's end in newlines here and there).

    Raises ``ValueError`` for a malformed file, no splits, and splits without an image.
    """
    wanted = set(splits)
    examples = []
    for row in read_json(captions, _File).images:
        if row.split not in wanted:
            continue
        own_id = PurePosixPath(row.filename).stem if row.cocoid is None else str(row.cocoid)
        key = "/".join(filter(None, (name, row.filepath, own_id)))
        examples.append(
            Example(
                id=own_id,
                images=(image_ref(key, images / row.filepath, row.filename),),
                question="",
                answers=tuple(sentence.raw.strip() for sentence in row.sentences),
                cluster=key,
            )
        )
    if not examples:
        raise ValueError(
            f"{captions}: expected images of the splits {[split.value for split in splits]}, "
            "found none"
        )
    return check_unique(examples, captions)


def read_coco_test(image_info: Path, images: Path, *, name: str) -> list[Example]:
    """The images of ``image_info_test2014.json``, in its order, without captions.

    ``images`` is the folder of ``test2014``; images are keyed ``{name}/test2014/{id}``. Raises
    ``ValueError`` for a malformed file.
    """
    examples = []
    for row in read_json(image_info, _TestFile).images:
        image = image_ref(f"{name}/test2014/{row.id}", images, row.file_name)
        examples.append(Example(id=str(row.id), images=(image,), question="", cluster=image.key))
    return check_unique(examples, image_info)


def write_coco_submission(
    path: Path, examples: Sequence[Example], captions: Mapping[str, str]
) -> None:
    """``[{"image_id": 1, "caption": "..."}]``, COCO's result format.

    The server wants it under the name ``captions_test2014_{method}_results.json``. Raises
    ``ValueError`` unless there is exactly one caption, by id, for each example.
    """
    rows = [
        {"image_id": int(example.id), "caption": caption}
        for example, caption in pair_answers(examples, captions)
    ]
    write_json(path, rows)
