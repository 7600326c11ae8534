"""Images and clips with captions, and segments as a user writes them."""

from __future__ import annotations

import builtins
import errno
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flamingo.choices import ClipStorage, FrameSampling
from flamingo.data.documents import Dropped
from flamingo.data.shards import open_shards
from flamingo.data.sources.captions import CaptionParser
from flamingo.data.sources.clips import ClipParser, clip_shards, sampled
from flamingo.data.sources.coco_captions import COCOCaptionParser, coco_caption_shards
from flamingo.data.sources.interleaved import parse_segments
from flamingo.source_config import (
    CaptionShardsSourceConfig,
    ClipsSourceConfig,
    COCOCaptionsSourceConfig,
    ShardsConfig,
)
from tests.written_shards import LEARN, SEEN, json_lines, png, shown, write_tar

EOC = "<|endofchunk|>"
SOMEWHERE = ShardsConfig(files=["somewhere"])


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def captions(**options) -> CaptionParser:
    return CaptionParser(CaptionShardsSourceConfig(shards=SOMEWHERE, **options))


def record(**fields) -> dict:
    return {"__key__": "shard/0", "__url__": "folder/shard", **fields}


# ---------------------------------------------------------------------------- image-caption tars


def test_a_caption_follows_its_image(tmp_path):
    about = json.dumps({"caption": "not this", "url": "u", "status": "success"}).encode()
    members = [
        ("000000000.jpg", png(1)),
        ("000000000.json", about),
        ("000000000.txt", b" a red circle \n"),
        ("000000001.webp", png(2)),
        ("000000001.json", json.dumps({"caption": "from the json"}).encode()),
    ]
    write_tar(tmp_path / "00000.tar", members)
    shards = open_shards(ShardsConfig(files=[str(tmp_path)]))
    made = [captions()(each, generator()) for each in shards.read(shards.shards[0])]
    made = pickle.loads(pickle.dumps(made))
    assert shown(made[0]) == [[1], (f"a red circle{EOC}", LEARN)]
    assert shown(made[1]) == [[2], (f"from the json{EOC}", LEARN)]
    keys = [each.media[0].frames[0].key for each in made]
    assert keys == [f"{shards.shards[0]}/0/jpg", f"{shards.shards[0]}/1/webp"]


def test_a_caption_from_columns():
    made = captions()(record(image={"bytes": png(3), "path": None}, caption="a dog"), generator())
    assert shown(made) == [[3], (f"a dog{EOC}", LEARN)]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"txt": b"a dog"}, "no image"),
        ({"jpg": b"", "txt": b"a dog"}, "no image"),
        ({"jpg": b"x"}, "no caption"),
        ({"jpg": b"x", "txt": b" \n"}, "no caption"),
        ({"jpg": b"x", "json": b'{"caption": null}'}, "no caption"),
        ({"jpg": b"x", "json": b"{"}, "malformed record"),
        ({"jpg": b"x", "json": b"[" * 9999 + b"]" * 9999}, "malformed record"),
        ({"jpg": b"x", "txt": b"\xff"}, "malformed record"),
        ({"jpg": b"x", "txt": b"a dog"}, "caption too short"),
        ({"jpg": b"x", "txt": b"a big black dog sleeps"}, "caption too long"),
        ({"jpg": b"x", "txt": b"an <image> of"}, "text contains a special token"),
    ],
)
def test_why_a_captioned_image_is_dropped(fields, reason):
    parse = captions(min_words=3, max_words=4)
    assert parse(record(**fields), generator()) == Dropped(reason)


@pytest.mark.parametrize("words", [3, 4])
def test_limits_of_words_are_within(words):
    parse = captions(min_words=3, max_words=4)
    assert len(shown(parse(record(jpg=png(), txt=b"dog " * words), generator()))) == 2


# ---------------------------------------------------------------------------- COCO


def coco(folder: Path, **changes) -> COCOCaptionsSourceConfig:
    content = {
        "info": {"year": 2014},
        "licenses": [],
        "images": [
            {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": 4, "width": 4},
            {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": 4, "width": 4},
        ],
        "annotations": [
            {"image_id": 9, "id": 100 + n, "caption": f"Caption {n}."} for n in range(5)
        ],
    } | changes
    (folder / "captions_train2014.json").write_text(json.dumps(content))
    (folder / "COCO_train2014_000000000009.jpg").write_bytes(png(9))
    return COCOCaptionsSourceConfig(
        annotations=str(folder / "captions_train2014.json"), images=str(folder)
    )


def test_one_of_an_images_captions_is_drawn(tmp_path):
    config = coco(tmp_path)
    shards = pickle.loads(pickle.dumps(coco_caption_shards(config)))
    first, second = [each for shard in shards.shards for each in shards.read(shard)]
    parse = COCOCaptionParser(config)
    drawn = Counter(shown(parse(first, generator(seed)))[1] for seed in range(300))
    assert drawn.keys() == {(f"Caption {n}.{EOC}", LEARN) for n in range(5)}
    assert min(drawn.values()) >= 30  # 60 expected
    assert shown(parse(first, generator()))[0] == [9]
    assert parse(second, generator()) == Dropped("no caption")


def test_annotations_that_do_not_fit_are_refused(tmp_path):
    wrong = coco(tmp_path, annotations=[{"image_id": 1, "id": 1, "caption": "Whose?"}])
    with pytest.raises(ValueError, match=r"captions of its images, got image_id 1"):
        coco_caption_shards(wrong)
    with pytest.raises(ValueError, match=r"captions_train2014\.json: images\[0\]\.file_name"):
        coco_caption_shards(coco(tmp_path, images=[{"id": 1}]))
    with pytest.raises(ValueError, match=r"annotations: expected a file"):
        coco_caption_shards(COCOCaptionsSourceConfig(annotations="nowhere", images="x"))


# ---------------------------------------------------------------------------- clips


def frames(count: int) -> dict[str, bytes]:
    """Not in the order of their numbers, which has 10 before 2 as text."""
    return {f"{n}.jpg": png(n) for n in reversed(range(count))}


def clips(**options) -> ClipsSourceConfig:
    return ClipsSourceConfig(**({"shards": SOMEWHERE, "frames": 3} | options))


def test_a_clip_is_one_medium_of_evenly_spaced_frames():
    made = ClipParser(clips())(record(**frames(12), txt=b"it falls"), generator())
    assert shown(made) == [[2, 6, 10], (f"it falls{EOC}", LEARN)]


@pytest.mark.parametrize(
    ("there", "count", "expected"),
    [(3, 3, [0, 1, 2]), (9, 3, [1, 4, 7]), (5, 1, [2]), (8, 4, [1, 3, 5, 7]), (5, 2, [1, 3])],
)
def test_even_frames_are_the_middles_of_equal_stretches(there, count, expected):
    assert sampled(there, count, FrameSampling.even, generator()) == expected


def test_random_frames_are_in_order_and_differ():
    draws = [tuple(sampled(6, 3, FrameSampling.random, generator(seed))) for seed in range(300)]
    assert all(list(draw) == sorted(set(draw)) for draw in draws)
    assert len(set(draws)) == 20  # all subsets


def test_why_a_clip_is_dropped():
    parse = ClipParser(clips())
    assert parse(record(txt=b"it falls"), generator()) == Dropped("no image")
    assert parse(record(**frames(2), txt=b"it falls"), generator()) == Dropped("too few frames")
    assert parse(record(**frames(3)), generator()) == Dropped("no caption")


def test_a_disk_that_fails_is_not_a_caption_that_is_not_there(tmp_path, monkeypatch):
    own = record(**frames(3), **{"caption.txt": str(tmp_path / "caption.txt")})
    parse = ClipParser(clips())
    assert parse(own, generator()) == Dropped("no caption")
    (tmp_path / "caption.txt").mkdir()
    assert parse(own, generator()) == Dropped("no caption")

    def fails(path: str, mode: str) -> None:
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(builtins, "open", fails)
    with pytest.raises(OSError, match="Input/output error"):
        parse(own, generator())


def test_clips_from_tars_and_from_folders_are_the_same(tmp_path):
    members = [(f"a.{n}.png", png(n)) for n in range(4)] + [("a.txt", b"it falls")]
    write_tar(tmp_path / "clips.tar", members)
    (tmp_path / "clips" / "a").mkdir(parents=True)
    for n in range(4):
        (tmp_path / "clips" / "a" / f"{n:05d}.png").write_bytes(png(n))
    (tmp_path / "clips" / "a" / "caption.txt").write_text("it falls")
    folders = {"storage": ClipStorage.folders, "shards": ShardsConfig()}
    for config in (
        clips(shards=ShardsConfig(files=[str(tmp_path / "clips.tar")]), frames=2),
        clips(**folders, folder=str(tmp_path / "clips"), frames=2),
    ):
        shards = clip_shards(config)
        (only,) = shards.read(shards.shards[0])
        assert shown(ClipParser(config)(only, generator())) == [[1, 3], (f"it falls{EOC}", LEARN)]
    with pytest.raises(ValueError, match=r"folder: expected a folder with storage=folders"):
        clips(**folders)
    with pytest.raises(ValueError, match=r"folder: expected null with storage=shards"):
        clips(folder="clips")


# ---------------------------------------------------------------------------- segments


def test_segments_are_taken_as_they_are(tmp_path):
    segments = [
        {"text": "What is it?"},
        {"image": "images/1.png"},
        {"text": f" A cat.{EOC}", "learn": True},
        {"frames": ["images/1.png", "images/2.png"]},
        {"text": "Then?", "learn": False},
    ]
    (tmp_path / "images").mkdir()
    for n in (1, 2):
        (tmp_path / "images" / f"{n}.png").write_bytes(png(n))
    (tmp_path / "own.jsonl").write_bytes(json_lines([{"segments": segments, "id": 3}]))
    shards = open_shards(ShardsConfig(files=[str(tmp_path)]))
    (only,) = shards.read(shards.shards[0])
    assert shown(parse_segments(only, generator())) == [
        ("What is it?", SEEN),
        [1],
        (f" A cat.{EOC}", LEARN),
        [1, 2],
        ("Then?", SEEN),
    ]


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        (None, "malformed record"),
        ([{"text": 1, "learn": True}], "malformed record"),
        ([{"text": "a", "learn": 1}], "malformed record"),
        ([{"text": "a", "learn": True}, {"image": ""}], "malformed record"),
        ([{"text": "a", "learn": True}, {"frames": []}], "malformed record"),
        ([{"text": "a", "learn": True}, {"frames": ["1.png", 2]}], "malformed record"),
        ([{"text": "a", "learn": True, "image": "1.png"}], "malformed record"),
        ([{"text": "a", "learn": True}, "b"], "malformed record"),
        ([{"text": "<image>", "learn": True}], "text contains a special token"),
        ([{"image": "1.png"}, {"text": "", "learn": True}], "no text to learn"),
        ([], "no text to learn"),
    ],
)
def test_why_segments_are_dropped(segments, reason):
    assert parse_segments(record(segments=segments), generator()) == Dropped(reason)
