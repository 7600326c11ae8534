"""Each source of documents from its section of the configuration to the rows of a step."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flamingo.composition import compose
from flamingo.config import DataConfig
from flamingo.data.mixture import UNSEEN, Mixture, build_sources
from flamingo.data.sources.documents import open_streams
from flamingo.evaluation.benchmarks.training import training_questions
from flamingo.identity import MAY_CHANGE
from flamingo.model.processor import prepare_tokenizer
from flamingo.source_config import StreamSourceConfig
from flamingo.structured import section
from flamingo.testing import VOCABULARY, tiny_tokenizer
from flamingo.types import TokenizedSequence
from tests.written_shards import in_base64, json_lines, png, shade, write_tar

DOCUMENTATION = Path(__file__).resolve().parent.parent / "docs" / "streams.md"
COUNT = 4
"""Documents of each source: what two steps of two sequences take."""
EOC = "<|endofchunk|>"

Written = list[str]
"""Overrides of the section, without its name."""


def write_interleaved(folder: Path, numbers: range) -> Written:
    records = []
    for n in numbers:
        for frame in range(2):
            (folder / f"{n}-{frame}.png").write_bytes(png(n))
        frames = {"frames": [f"{n}-{frame}.png" for frame in range(2)]}
        records.append({"segments": [frames, {"text": f"{n}{EOC}", "learn": True}]})
    (folder / "own.jsonl").write_bytes(json_lines(records))
    return [f"shards.files=[{folder}/*.jsonl]"]


def write_mmc4(folder: Path, numbers: range) -> Written:
    records = [
        {
            "text_list": [f"{n}"],
            "image_info": [{"image_name": f"{n}.png", "image_base64": in_base64(png(n))}],
            "similarity_matrix": [[0.3]],
        }
        for n in numbers
    ]
    (folder / "docs_shard_0_v3.jsonl").write_bytes(json_lines(records))
    return [f"shards.files=[{folder}]", "single_image_rejection=0.0"]


def write_obelics(folder: Path, numbers: range) -> Written:
    pages = [
        {"images": [{"bytes": png(n), "path": None}, None], "texts": [None, f"{n}"]}
        for n in numbers
    ]
    pq.write_table(pa.Table.from_pylist(pages), folder / "train-00000-of-00001.parquet")
    return [f"shards.files=[{folder}]"]


def write_captions(folder: Path, numbers: range) -> Written:
    members = [
        (f"{n:09}.{suffix}", data)
        for n in numbers
        for suffix, data in (("jpg", png(n)), ("txt", str(n).encode()))
    ]
    write_tar(folder / "00000.tar", members)
    return [f"shards.files=[{folder}/00000.tar]"]


def write_coco(folder: Path, numbers: range) -> Written:
    for n in numbers:
        (folder / f"{n}.jpg").write_bytes(png(n))
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in numbers],
        "annotations": [{"id": n, "image_id": n, "caption": f"{n}"} for n in numbers],
    }
    (folder / "captions_train2014.json").write_text(json.dumps(content))
    return [f"annotations={folder}/captions_train2014.json", f"images={folder}"]


def write_vqa(folder: Path, numbers: range) -> Written:
    rows: list[dict[str, Any]] = []
    for n in numbers:
        (folder / f"{n}.jpg").write_bytes(png(n))
        rows.append({"question_id": n, "question": "", "image_id": f"{n}", "answers": [f"{n}"]})
    (folder / "TextVQA_0.5.1_train.json").write_text(json.dumps({"data": rows}))
    questions = f"questions={folder}/TextVQA_0.5.1_train.json"
    return ["format=textvqa", questions, f"images={folder}", "pairs=1"]


def write_clips(folder: Path, numbers: range) -> Written:
    members = [(f"{n}.{frame}.png", png(n)) for n in numbers for frame in range(3)]
    members += [(f"{n}.txt", str(n).encode()) for n in numbers]
    write_tar(folder / "clips.tar", sorted(members))
    return [f"shards.files=[{folder}]", "frames=2"]


def write_clip_folders(folder: Path, numbers: range) -> Written:
    for n in numbers:
        (folder / f"{n}").mkdir()
        for frame in range(2):
            (folder / f"{n}" / f"{frame}.png").write_bytes(png(n))
        (folder / f"{n}" / "caption.txt").write_text(str(n))
    return ["storage=folders", f"folder={folder}", "frames=2"]


SOURCES: dict[str, tuple[Callable[[Path, range], Written], int]] = {
    "interleaved": (write_interleaved, 2),
    "mmc4": (write_mmc4, 1),
    "obelics": (write_obelics, 1),
    "captions": (write_captions, 1),
    "coco_captions": (write_coco, 1),
    "vqa": (write_vqa, 1),
    "clips": (write_clips, 2),
    "clips in folders": (write_clip_folders, 2),
}
"""How a source's data is written, and the frames of its media."""


@pytest.fixture
def tokenizer():
    return prepare_tokenizer(tiny_tokenizer(), VOCABULARY)


def mixture_of(tokenizer, name: str, *overrides: str) -> Mixture:
    """Of two sequences a step, in lanes that two steps empty."""
    share = ["sequences=2", "loss_weight=0.5", "lanes=1"]
    keys = [f"data.{name}.{override}" for override in (*share, *overrides)]
    config = compose(["name=x", "data.cache_features=false", *keys])
    assert list(config.data.streams) == [name]

    def unused() -> Path:
        raise AssertionError

    documents = open_streams(config.data, training_questions)
    sources = build_sources(config.data, 0, tokenizer, unused, unused, documents)
    return Mixture(sources, config.data.sources, tokenizer, config.data.max_tokens)


def number_of(row: TokenizedSequence, tokenizer, frames: int) -> int:
    """The number that a row's text says and its frames show."""
    text = tokenizer.decode(row.input_ids)
    number = int(text.removeprefix("<image>").removesuffix(EOC))
    assert text.replace(" ", "") == f"<image>{number}{EOC}"
    (medium,) = row.media
    assert [shade(frame.open()) for frame in medium.frames] == [number] * frames
    return number


@pytest.mark.parametrize("name", SOURCES)
def test_two_steps_of_a_source_have_each_of_its_documents_once(tmp_path, tokenizer, name):
    write, frames = SOURCES[name]
    mixture = mixture_of(tokenizer, name.split()[0], *write(tmp_path, range(1, COUNT + 1)))
    assert mixture.names == (name.split()[0],) and mixture.loss_weights == (0.5,)
    rows = [row for step in range(2) for _, row in mixture.step(step)]
    numbers = [number_of(row, tokenizer, frames) for row in rows]
    assert sorted(numbers) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("interleaved", "/*.jsonl"),
        *(("mmc4", ""), ("captions", "/*.tar"), ("clips", ""), ("clips in folders", "")),
    ],
)
def test_unseen_sequences_are_of_other_shards(tmp_path, tokenizer, name, pattern):
    write, frames = SOURCES[name]
    for folder in ("seen", "unseen"):
        (tmp_path / folder).mkdir()
    seen = write(tmp_path / "seen", range(1, 5))
    write(tmp_path / "unseen", range(5, 7))
    unseen = f"validation='{tmp_path}/unseen{pattern}'"
    mixture = mixture_of(tokenizer, name.split()[0], *seen, unseen)
    for step, expected in ((0, range(1, 5)), (UNSEEN, range(5, 7))):
        assert {number_of(row, tokenizer, frames) for _, row in mixture.step(step)} <= {*expected}


VALIDATED = ["interleaved", "mmc4", "obelics", "captions", "clips", "clips in folders"]


@pytest.mark.parametrize("name", VALIDATED)
def test_unseen_sequences_that_training_sees_are_refused(tmp_path, tokenizer, name):
    write, _ = SOURCES[name]
    for folder in ("seen", "beside"):
        (tmp_path / folder).mkdir()
    seen = write(tmp_path / "seen", range(1, 5))
    write(tmp_path / "beside", range(5, 7))
    (tmp_path / "link").symlink_to(tmp_path / "seen")
    section = name.split()[0]
    for way in ("seen", "beside/../seen", "link"):
        place = f"validation={tmp_path}/{way}"
        with pytest.raises(ValueError, match=rf"data.{section}.validation: expected other shards"):
            mixture_of(tokenizer, section, *seen, place)
    mixture_of(tokenizer, section, *seen, f"validation={tmp_path}/beside")


def test_a_pattern_that_covers_the_file_of_unseen_sequences_is_refused(tmp_path, tokenizer):
    seen = write_interleaved(tmp_path, range(1, 5))
    (tmp_path / "val.jsonl").write_bytes((tmp_path / "own.jsonl").read_bytes())
    match = r"data.interleaved.validation: .* 1 of them \(such as .*/val.jsonl\): name files"
    with pytest.raises(ValueError, match=match):
        mixture_of(tokenizer, "interleaved", *seen, f"validation={tmp_path}/val.jsonl")
    mixture_of(
        tokenizer,
        *("interleaved", f"shards.files=[{tmp_path}/own.jsonl]"),
        f"validation={tmp_path}/val.jsonl",
    )


@pytest.mark.parametrize("name", ["coco_captions", "vqa"])
def test_the_last_images_of_a_file_are_held_out(tmp_path, tokenizer, name):
    write, frames = SOURCES[name]
    written = write(tmp_path, range(1, 8))
    mixture = mixture_of(tokenizer, name, *written, "held_out=3")
    seen, unseen = (
        {number_of(row, tokenizer, frames) for s in range(4) for _, row in mixture.step(first + s)}
        for first in (0, UNSEEN)
    )
    assert (seen, unseen) == ({1, 2, 3, 4}, {5, 6, 7})
    assert mixture_of(tokenizer, name, *written).streams[name].held_out is None
    with pytest.raises(ValueError, match=rf"data.{name}: held_out: .* the 7 images of .*, got 7"):
        mixture_of(tokenizer, name, *written, "held_out=7")


def test_documents_are_cut_to_the_tokens_of_their_source(tmp_path, tokenizer):
    write_tar(tmp_path / "00000.tar", [("0.png", png(1)), ("0.txt", b"This" + b" yes" * 50)])
    files = f"shards.files=[{tmp_path}]"
    yes = tokenizer.convert_tokens_to_ids("Ġyes")
    for options, expected in ((["max_tokens=5"], 5), ([], 32)):  # 32: OpenFlamingo's
        _, row = mixture_of(tokenizer, "captions", files, *options).step(0)[0]
        assert len(row.input_ids) == expected and set(row.input_ids[2:]) == {yes}
    with pytest.raises(ValueError, match=r"data.captions.max_tokens: expected at most .*512.*600"):
        mixture_of(tokenizer, "captions", files, "max_tokens=600")


STREAMS = {
    name: own
    for name, own in ((n, section(h)) for n, h in get_type_hints(DataConfig).items())
    if own is not None and issubclass(own, StreamSourceConfig)
}


def test_every_section_of_documents_is_tested_here():
    assert STREAMS.keys() == {name.split()[0] for name in SOURCES}


def test_a_run_may_continue_with_other_unseen_sequences():
    validated = [n for n, own in STREAMS.items() if "validation" in get_type_hints(own)]
    assert validated
    assert {f"data.{name}.validation" for name in validated} <= set(MAY_CHANGE)


def test_the_documentation_has_the_keys_of_every_section():
    table = re.findall(
        r"^\| `data\.(\w+)` \|.*\| (.*) \|$", DOCUMENTATION.read_text(), re.MULTILINE
    )
    shared = {field.name for field in fields(StreamSourceConfig)}
    for name, keys in table:
        own = {field.name for field in fields(STREAMS[name])} - shared
        assert set(re.findall(r"`(\w+)`", keys)) == own, name
    assert [name for name, _ in table] == list(STREAMS)
