"""MMC4 and OBELICS: web pages as interleaved sequences."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from flamingo.choices import ImageMatching, LearnedText
from flamingo.data.documents import Dropped
from flamingo.data.interleaving import interleave
from flamingo.data.shards import open_shards
from flamingo.data.sources.mmc4 import MMC4Parser
from flamingo.data.sources.obelics import OBELICSParser
from flamingo.source_config import MMC4SourceConfig, OBELICSSourceConfig, ShardsConfig
from flamingo.types import ImageRef, InterleavedSequence, Media, Text
from tests.written_shards import LEARN, SEEN, in_base64, json_lines, png, shown, write_tar

EOC = "<|endofchunk|>"
SOMEWHERE = ShardsConfig(files=["somewhere"])


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def mmc4(**options) -> MMC4Parser:
    options = {"shards": SOMEWHERE, "single_image_rejection": 0.0} | options
    return MMC4Parser(MMC4SourceConfig(**options))


def obelics(**options) -> OBELICSParser:
    return OBELICSParser(OBELICSSourceConfig(**({"shards": SOMEWHERE} | options)))


def document(similarity: list[list[float]], **changes: Any) -> dict[str, Any]:
    """A document of MMC4 with sentences S0, S1, ... and images of shades 10, 20, ..."""
    images = [
        {
            "image_name": f"{number:012x}.png",
            "raw_url": f"http://example.org/{number}.png",
            "matched_text_index": int(np.argmax(row)),
            "matched_sim": max(row),
            "face_detections": None,
            "image_base64": in_base64(png(10 * (number + 1))),
        }
        for number, row in enumerate(similarity)
    ]
    return {
        "url": "http://example.org",
        "text_list": [f"S{number}." for number in range(len(similarity[0]))],
        "image_info": images,
        "similarity_matrix": similarity,
        "could_have_url_duplicate": 0,
        "__key__": "shard/0",
        "__url__": "shard",
    } | changes


# ---------------------------------------------------------------------------- MMC4


def test_an_image_stands_before_its_sentence_and_the_text_before_it_is_not_learned():
    made = mmc4()(document([[0.1, 0.1, 0.3, 0.2]]), generator())
    assert shown(made) == [("S0. S1.", SEEN), [10], (f"S2. S3.{EOC}", LEARN)]
    made = mmc4(learn=LearnedText.everything)(document([[0.1, 0.1, 0.3, 0.2]]), generator())
    assert shown(made)[0] == ("S0. S1.", LEARN)


def test_images_are_in_the_order_of_their_sentences():
    made = mmc4()(document([[0.1, 0.1, 0.3], [0.4, 0.1, 0.1], [0.1, 0.3, 0.1]]), generator())
    assert shown(made) == [
        *([20], (f"S0.{EOC}", LEARN)),
        *([30], (f"S1.{EOC}", LEARN)),
        *([10], (f"S2.{EOC}", LEARN)),
    ]


def test_images_are_matched_one_to_one_among_those_that_were_fetched():
    similarity = [[0.9, 0.8], [0.9, 0.1]]
    made = mmc4(similarity=0.5)(document(similarity), generator())
    assert shown(made) == [[20], (f"S0.{EOC}", LEARN), [10], (f"S1.{EOC}", LEARN)]
    missing = document(similarity)
    del missing["image_info"][1]["image_base64"]
    assert shown(mmc4()(missing, generator())) == [[10], (f"S0. S1.{EOC}", LEARN)]


def test_the_stored_matching_needs_no_similarities():
    images = document([[0.9, 0.8], [0.9, 0.1]])["image_info"]
    for image, place, similarity in zip(images, (1, 0), (0.3, 0.2), strict=True):
        image |= {"matched_text_index": place, "matched_sim": similarity}
    own = document([[0.9, 0.8]], image_info=images, similarity_matrix=None)
    made = mmc4(matching=ImageMatching.stored)(own, generator())
    assert shown(made) == [("S0.", SEEN), [10], (f"S1.{EOC}", LEARN)]


@pytest.mark.parametrize(("similarity", "kept"), [(0.24, True), (0.2399, False)])
def test_an_image_as_similar_as_the_threshold_is_kept(similarity, kept):
    made = mmc4()(document([[similarity, 0.0], [0.0, 0.3]]), generator())
    assert isinstance(made, InterleavedSequence)
    assert len(made.media) == (2 if kept else 1)
    made = mmc4()(document([[similarity, 0.0]]), generator())
    assert (made == Dropped("no image similar to the text")) is not kept


def test_at_most_six_images_the_first_in_reading_order():
    similarity = np.eye(8)[::-1].tolist()  # the first image stands before the last sentence
    made = mmc4()(document(similarity), generator())
    assert shown(made)[:-1:2] == [[80], [70], [60], [50], [40], [30]]
    assert shown(made)[-1] == (f"S5. S6. S7.{EOC}", LEARN)  # the text stays
    assert len(shown(mmc4(max_images=2)(document(similarity), generator()))) == 4


def test_half_of_the_documents_with_one_image_are_dropped():
    parse = mmc4(single_image_rejection=0.5)
    made = [parse(document([[0.3]]), generator(seed)) for seed in range(400)]
    dropped = made.count(Dropped("single image"))
    assert 160 <= dropped <= 240  # four standard deviations
    assert made == [parse(document([[0.3]]), generator(seed)) for seed in range(400)]
    two = [parse(document([[0.3, 0], [0, 0.3]]), generator(seed)) for seed in range(50)]
    assert not any(isinstance(each, Dropped) for each in two)


def test_too_few_images():
    parse = mmc4(min_images=2)
    assert parse(document([[0.3, 0.0]]), generator()) == Dropped("too few images")
    assert isinstance(parse(document([[0.3, 0], [0, 0.3]]), generator()), InterleavedSequence)


def test_images_as_files_beside_the_documents(tmp_path):
    (tmp_path / "000000000001.png").write_bytes(png(77))
    own = document([[0.3, 0.0], [0.0, 0.3]])
    for image in own["image_info"]:
        del image["image_base64"]
    made = mmc4(images=str(tmp_path))(own, generator())
    assert shown(made) == [("S0.", SEEN), [77], (f"S1.{EOC}", LEARN)]
    assert mmc4()(own, generator()) == Dropped("no image")


@pytest.mark.parametrize("image", [png(7), {"bytes": png(7), "path": None}])
def test_images_as_bytes_within_the_documents(image):
    own = document([[0.3]], image_info=[{"image": image}])
    assert shown(mmc4()(own, generator()))[0] == [7]
    assert mmc4(min_image_bytes=10_000)(own, generator()) == Dropped("no image")
    for odd in (5, [], {}):
        own = document([[0.3]], image_info=[{"image": odd}])
        assert mmc4()(own, generator()) == Dropped("no image")


def test_small_image_files_are_left_out():
    size = len(png(10))
    for least, images in ((size, 1), (size + 3, 0)):
        made = mmc4(min_image_bytes=least)(document([[0.3]]), generator())
        assert (made == Dropped("no image")) is (images == 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"text_list": None},
        {"text_list": ["S0.", 1]},
        {"similarity_matrix": [[0.3]]},
        {"similarity_matrix": [[0.3, float("nan")]]},
        {"similarity_matrix": []},
        {"similarity_matrix": None},
        {"image_info": [{"image_base64": 5}]},
        {"json": b"{"},
        {"text_list": ["half a pair: \ud83d", "S1."]},
    ],
)
def test_a_malformed_document_is_dropped(changes):
    own = document([[0.3, 0.1]], **changes)
    assert mmc4()(own, generator()) == Dropped("malformed record")


def test_text_that_contains_a_special_token_is_dropped():
    for text in ("<image>", f"a{EOC}b"):
        own = document([[0.3, 0.1]], text_list=["S0.", text])
        assert mmc4()(own, generator()) == Dropped("text contains a special token")


def test_broken_images_are_found_when_they_are_opened():
    for content in ("no base64!", in_base64(b"no image"), in_base64(png()[:30])):
        own = document([[0.3, 0.1]])
        own["image_info"][0]["image_base64"] = content
        made = mmc4()(own, generator())
        assert isinstance(made, InterleavedSequence)
        with pytest.raises(ValueError, match=r"shard/0/0: "):
            made.media[0].frames[0].open()


def test_a_decompression_bomb_is_refused_unopened():
    bomb = bytearray(png())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in the header
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    own = document([[0.3, 0.1]])
    own["image_info"][0]["image_base64"] = base64.b64encode(bomb).decode()
    made = mmc4()(own, generator())
    assert isinstance(made, InterleavedSequence)
    with pytest.raises(ValueError, match=r"pixels"):
        made.media[0].frames[0].open()


def test_the_same_document_from_json_lines_and_from_open_flamingos_tars(tmp_path):
    own = {k: v for k, v in document([[0.1, 0.3]]).items() if not k.startswith("__")}
    (tmp_path / "a.jsonl").write_bytes(json_lines([own]))
    write_tar(tmp_path / "a.tar", [("000000000.json", json.dumps(own).encode())])
    for name in ("a.jsonl", "a.tar"):
        shards = open_shards(ShardsConfig(files=[str(tmp_path / name)]))
        (record,) = shards.read(shards.shards[0])
        made = pickle.loads(pickle.dumps(mmc4()(record, generator())))
        assert shown(made) == [("S0.", SEEN), [10], (f"S1.{EOC}", LEARN)]
        assert made.media[0].frames[0].key == f"{tmp_path / name}/0/0"


# ---------------------------------------------------------------------------- OBELICS


def page(images: list, texts: list) -> dict[str, Any]:
    return {
        "images": images,
        "texts": texts,
        "metadata": "[]",
        "general_metadata": "{}",
        "__key__": "shard/0",
    }


def stored(shade: int) -> dict[str, Any]:
    return {"bytes": png(shade), "path": None}


def test_a_page_is_read_in_its_order():
    own = page(
        [None, stored(1), None, None, stored(2), stored(3), None],
        ["Before.", None, "One.", "More.", None, None, "Three.\n\nEnd. "],
    )
    assert shown(obelics()(own, generator())) == [
        ("Before.", SEEN),
        *([1], (f"One.\n\nMore.{EOC}", LEARN)),
        *([2], (EOC, LEARN)),
        *([3], (f"Three.\n\nEnd.{EOC}", LEARN)),
    ]


def test_a_page_ends_before_the_image_after_its_last_allowed_one():
    own = page([stored(1), None, stored(2), None], [None, "One.", None, "Two."])
    made = obelics(max_images=1)(own, generator())
    assert shown(made) == [[1], (f"One.{EOC}", LEARN)]


def test_images_by_the_hash_of_their_address(tmp_path):
    there, gone = "http://example.org/1.png", "http://example.org/2.png"
    name = hashlib.sha256(there.encode()).hexdigest()
    (tmp_path / name).write_bytes(png(5))
    own = page([gone, None, there, None], [None, "One.", None, "Two."])
    made = obelics(images=str(tmp_path))(own, generator())
    assert shown(made) == [("One.", SEEN), [5], (f"Two.{EOC}", LEARN)]
    assert made.media[0].frames[0].key == str(tmp_path / name)
    assert obelics()(own, generator()) == Dropped("no image")


@pytest.mark.parametrize(
    ("number", "dropped"),
    [
        *((errno.ENOENT, True), (errno.ENOTDIR, True), (errno.ENAMETOOLONG, True)),
        *((errno.EIO, False), (errno.ESTALE, False), (errno.EACCES, False)),
    ],
)
def test_a_disk_that_fails_is_not_an_image_that_was_not_fetched(monkeypatch, number, dropped):
    def fails(path: str, **_: Any) -> None:
        raise OSError(number, os.strerror(number), path)

    own = document([[0.3]], image_info=[{"image_name": "1.png"}])
    url = page(["http://example.org/1.png", None], [None, "One."])
    for parse, made_of in ((mmc4(images="images"), own), (obelics(images="images"), url)):
        with monkeypatch.context() as context:
            context.setattr(os, "stat", fails)
            if dropped:
                assert parse(made_of, generator()) == Dropped("no image")
                continue
            with pytest.raises(OSError, match=os.strerror(number)):
                parse(made_of, generator())


def test_what_is_no_image_file_was_not_fetched(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("folder", "nothing", "a" * 300, "nul\0"):
        own = document([[0.3]], image_info=[{"image_name": name}])
        assert mmc4(images=str(tmp_path))(own, generator()) == Dropped("no image")


def test_pages_with_nothing_to_learn_are_dropped():
    own = page([None, stored(1)], ["Before.", None])
    assert obelics()(own, generator()) == Dropped("no text to learn")
    made = obelics(learn=LearnedText.everything)(own, generator())
    assert shown(made) == [("Before.", LEARN), [1], (EOC, LEARN)]


@pytest.mark.parametrize(
    ("images", "texts"),
    [
        ([None], ["a", None]),
        ([None], [None]),
        (["url"], ["text"]),
        ("url", "text"),
        ([None], [3]),
    ],
)
def test_a_malformed_page_is_dropped(images, texts):
    assert obelics()(page(images, texts), generator()) == Dropped("malformed record")


def test_pages_from_parquet(tmp_path):
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "metadata": datasets.Value("string"),
            "general_metadata": datasets.Value("string"),
            "texts": datasets.List(datasets.Value("string")),
        }
    )
    own = page([stored(1), None], [None, "One."])
    rows = {name: [own[name]] for name in features}
    path = tmp_path / "train-00000-of-00001.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    shards = open_shards(ShardsConfig(files=[str(path)]))
    (record,) = shards.read(str(path))
    assert shown(obelics()(record, generator())) == [[1], (f"One.{EOC}", LEARN)]


# ---------------------------------------------------------------------------- the layout


def test_the_text_is_open_flamingos():
    """Against OpenFlamingo's own joining of strings, written out for one document."""
    refs = [ImageRef(str(n), Path) for n in range(2)]  # never opened
    parts = ["A.", Media((refs[0],)), "B.", "C.", Media((refs[1],)), "D."]
    made = interleave(parts, joint=" ")
    assert isinstance(made, InterleavedSequence)
    text = "".join("<image>" if isinstance(s, Media) else s.text for s in made.segments)
    assert text == f"A.<image>B. C.{EOC}<image>D.{EOC}"
    learned = [s.text for s in made.segments if isinstance(s, Text) and s.learn]
    assert learned == [f"B. C.{EOC}", f"D.{EOC}"]


@pytest.mark.parametrize(
    "options",
    [
        {"similarity": 2.0},
        {"max_images": 0},
        {"min_images": 7},
        {"single_image_rejection": 1.5},
        {"min_image_bytes": -1},
        {"shards": ShardsConfig()},
    ],
)
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        mmc4(**options)
