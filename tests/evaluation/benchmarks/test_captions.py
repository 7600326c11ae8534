"""Karpathy's splits of COCO and Flickr30k, and COCO's test set, in their published formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flamingo.choices import KarpathySplit
from flamingo.evaluation.benchmarks.captions import (
    read_coco_test,
    read_karpathy,
    write_coco_submission,
)
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_images
from tests.evaluation.benchmarks.fixtures import DATA, GREEN, RED, colour, edited, ref

COCO = DATA / "coco_captions/dataset_coco.json"
FLICKR = DATA / "flickr30k/dataset_flickr30k.json"
FLICKR_IMAGES = DATA / "flickr30k/images"


def _coco(*splits: KarpathySplit, captions: Path = COCO, images: Path = DATA / "coco"):
    return read_karpathy(captions, images, splits, name="coco_captions")


def test_coco_images_have_their_captions_without_surrounding_space() -> None:
    examples = _coco(KarpathySplit.test)
    assert examples == [
        Example(
            id="262148",
            images=(ref("coco_captions/val2014/262148"),),
            question="",
            answers=(
                "A man with a red helmet on a small moped on a dirt road.",
                "Man riding a motor bike on a dirt road on the countryside.",
            ),
            cluster="coco_captions/val2014/262148",
        )
    ]
    check_images(examples)
    assert colour(examples[0]) == GREEN


def test_training_may_include_the_rest_of_val() -> None:
    assert [e.id for e in _coco(KarpathySplit.train)] == ["458752"]
    both = _coco(KarpathySplit.train, KarpathySplit.restval)
    assert [e.id for e in both] == ["393225", "458752"]
    assert colour(both[1]) == RED


def test_flickr30k_is_named_by_its_files() -> None:
    examples = read_karpathy(FLICKR, FLICKR_IMAGES, [KarpathySplit.train], name="flickr30k")
    assert examples == [
        Example(
            id="1000092795",
            images=(ref("flickr30k/1000092795"),),
            question="",
            answers=(
                "Two young guys with shaggy hair look at their hands while hanging out in the "
                "yard.",
                "Two young, White males are outside near many bushes.",
            ),
            cluster="flickr30k/1000092795",
        )
    ]
    assert colour(examples[0]) == RED
    (test,) = read_karpathy(FLICKR, FLICKR_IMAGES, [KarpathySplit.test], name="flickr30k")
    assert test.id == "1007129816"


def test_the_test_set_has_no_captions_and_a_submission(tmp_path: Path) -> None:
    info = DATA / "coco_captions/image_info_test2014.json"
    examples = read_coco_test(info, DATA / "coco/test2014", name="coco_captions")
    assert examples == [
        Example(
            id="1",
            images=(ref("coco_captions/test2014/1"),),
            question="",
            cluster="coco_captions/test2014/1",
        )
    ]
    check_images(examples)
    path = tmp_path / "captions_test2014_flamingo_results.json"
    write_coco_submission(path, examples, {"1": "a red square"})
    assert json.loads(path.read_text()) == [{"image_id": 1, "caption": "a red square"}]


def test_a_split_without_images_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected images of the splits \['restval'\], found non"):
        read_karpathy(FLICKR, FLICKR_IMAGES, [KarpathySplit.restval], name="flickr30k")
    with pytest.raises(ValueError, match=r"expected images of the splits \[\]"):
        _coco()


def test_malformed_records_and_missing_images_are_named(tmp_path: Path) -> None:
    path = edited(COCO, tmp_path / "c.json", lambda f: f["images"][2].update(split="dev"))
    with pytest.raises(ValueError, match=r"c.json: images\[2\]\.split: .*'restval', got 'dev'"):
        _coco(KarpathySplit.train, captions=path)
    with pytest.raises(ValueError, match="val2014/COCO_val2014_000000262148.jpg: .*1 of 1 images"):
        check_images(_coco(KarpathySplit.test, images=tmp_path))
