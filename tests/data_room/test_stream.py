"""Streams: what a row is, where a lane stands, and what is passed over."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from flamingo.config import SourceConfig
from flamingo.data.cursor import Cursor, dropped, from_plain, furthest, to_plain
from flamingo.data.documents import BrokenShard, Dropped, Fitting, Record
from flamingo.data.lanes import Lane, Stream
from flamingo.data.mixture import Mixture
from flamingo.data.sequence import tokenize
from flamingo.data.sources.interleaved import parse_segments
from flamingo.data.stream import StreamSource
from flamingo.types import ImageRef, InterleavedSequence, Media, Text
from tests.toy_stream import name_of, names, read_lines, source, write_shards

SIZES = [7, 4, 9, 5, 6, 8]


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path, SIZES)


def stream_of(shards: list[str], **options) -> Stream:
    return source(shards, **options)._stream


def epoch_of(stream: Stream, epoch: int) -> list[list[str]]:
    """What each lane gives in ``epoch``, in order."""
    found = []
    for number in range(stream.lanes):
        lane = Lane(stream, number, Cursor(epoch=epoch))
        rows = sum(1 for _ in stream.documents(stream.shares(number, epoch), epoch))
        found.append([name_of(lane.next()) for _ in range(rows)])
    return found


# ---------------------------------------------------------------------------- what a row is


@pytest.mark.parametrize("lanes", [1, 2, 4, 6, 7, 13])  # shards alone, shared, and both
def test_in_an_epoch_every_document_is_in_one_lane_once(shards, lanes):
    stream = stream_of(shards, lanes=lanes)
    expected = sorted(f"{s}-{n}" for s, size in enumerate(SIZES) for n in range(size))
    orders = [epoch_of(stream, epoch) for epoch in range(3)]
    for order in orders:
        assert sorted(name for lane in order for name in lane) == expected
    assert orders[0] != orders[1] != orders[2]


def test_a_row_is_the_next_of_its_lane(shards):
    toy, lanes = source(shards), 4
    together = names(toy, range(24))
    for lane in range(lanes):
        own = source(shards)
        assert names(own, range(lane, 24, lanes)) == together[lane::lanes]


def test_a_row_does_not_depend_on_what_was_read_before(shards):
    straight = names(source(shards), range(60))
    toy = source(shards)
    order = np.random.default_rng(0).permutation(60).tolist()
    assert names(toy, order) == [straight[index] for index in order]
    assert names(toy, [5, 5, 5]) == [straight[5]] * 3


def test_blocks_are_shuffled_and_no_document_leaves_its_block(shards):
    plain = epoch_of(stream_of(shards, lanes=1, shuffle=1), 0)[0]
    shuffled = epoch_of(stream_of(shards, lanes=1, shuffle=5), 0)[0]
    assert plain != shuffled
    blocks = range(0, len(plain), 5)
    assert all(sorted(plain[b : b + 5]) == sorted(shuffled[b : b + 5]) for b in blocks)
    places = {tuple(plain[b : b + 5].index(n) for n in shuffled[b : b + 5]) for b in blocks}
    assert len(places) > 2  # not the same permutation in every block
    inner = [name for name in plain if name.startswith("2-")]
    assert inner == sorted(inner)  # in a shard the file's order, before shuffling


def test_the_seed_and_the_name_decide_the_order(shards):
    orders = [
        names(source(shards, **options), range(20))
        for options in ({}, {"seed": 4}, {"name": "other"})
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2]
    assert orders[0] == names(source(shards), range(20))


def test_a_parser_draws_the_same_for_a_record_of_an_epoch_and_anew_for_the_next(shards):
    drawn: dict[str, set[float]] = {}

    def parse(record: Record, generator: np.random.Generator) -> InterleavedSequence:
        name = record["segments"][1]["text"]
        drawn.setdefault(name, set()).add(generator.random())
        return InterleavedSequence((Text(name),))

    for lanes in (2, 3):
        for lane in range(lanes):
            list(
                stream_of(shards, lanes=lanes, parse=parse).documents(
                    stream_of(shards, lanes=lanes).shares(lane, 0), 0
                )
            )
    assert all(len(values) == 1 for values in drawn.values()) and len(drawn) == sum(SIZES)
    assert len(set.union(*drawn.values())) == sum(SIZES)
    stream = stream_of(shards, lanes=1, parse=parse)
    list(stream.documents(stream.shares(0, 1), 1))
    assert all(len(values) == 2 for values in drawn.values())


def test_images_are_opened_once_and_with_the_row(shards):
    row = source(shards).sequence(0)
    (medium,) = row.media
    assert medium.frames[0].open() is medium.frames[0].open()
    assert medium.frames[0].open().size == (32, 32)


def test_a_stream_lists_no_images(shards):
    assert list(source(shards).images()) == []


# ---------------------------------------------------------------------------- cursors


def faulty(tmp_path: Path) -> list[str]:
    """Shards with broken images and lines, and one that breaks half-way."""
    broken = [f"{s}-{n}" for s in range(6) for n in (1, 2, 6)]
    return write_shards(tmp_path, SIZES, broken, not_json=2)


def breaking(shard: str) -> Iterator[Record]:
    """Reads JSON lines, but of the shard 003 no more than three."""
    for number, record in enumerate(read_lines(shard)):
        if "003.jsonl" in shard and number == 3:
            raise BrokenShard(shard, "cut off")
        yield record


@pytest.mark.parametrize(("lanes", "shuffle"), [(1, 4), (2, 1), (4, 5), (8, 3), (4, 100)])
def test_a_lane_continued_from_any_cursor_goes_on_as_if_it_had_not_stopped(
    tmp_path, lanes, shuffle
):
    shards = faulty(tmp_path)
    stream = stream_of(shards, lanes=lanes, shuffle=shuffle, read=breaking)
    for number in range(lanes):
        lane = Lane(stream, number, Cursor())
        rows, cursors = [], [lane.cursor]
        for _ in range(90 // lanes):
            rows.append(name_of(lane.next()))
            cursors.append(lane.cursor)
        assert cursors[-1].epoch >= 2
        for stop in range(len(rows)):
            plain = json.loads(json.dumps(to_plain({number: cursors[stop]})))
            again = Lane(stream, number, from_plain(plain)[number])
            for place in range(stop, min(stop + 2 * shuffle + 3, len(rows))):
                assert name_of(again.next()) == rows[place]
                assert again.cursor == cursors[place + 1]


def test_a_resumed_source_gives_the_same_rows_without_reading_from_the_start(shards):
    lanes, toy = 4, source(shards)
    rows = names(toy, range(60))
    cursors = {i % lanes: toy.after(i) for i in range(28, 32)}
    opened: list[str] = []

    def read(shard: str) -> Iterator[Record]:
        opened.append(shard)
        return read_lines(shard)

    resumed = source(shards, read=read)
    resumed.resume(json.loads(json.dumps(toy.state(cursors))))
    assert names(resumed, range(32, 36)) == rows[32:36]
    assert len(opened) <= 2 * lanes
    assert names(resumed, range(36, 60)) == rows[36:]
    assert names(resumed, range(8)) == rows[:8]  # before the cursors: from the start


def test_a_cursor_does_not_depend_on_who_read_the_lane(shards):
    straight, jumping = source(shards), source(shards)
    cursors = []
    for index in range(40):
        straight.sequence(index)
        cursors.append(straight.after(index))
    assert [jumping.after(index) for index in (39, 7, 20)] == [cursors[i] for i in (39, 7, 20)]


def test_other_shards_than_the_checkpoints_are_refused(tmp_path, shards):
    state = source(shards).state({0: Cursor(given=3)})
    moved = write_shards(tmp_path / "elsewhere", SIZES)
    source(moved).resume(state)
    with pytest.raises(ValueError, match=r"toy.shards: expected .*6 shards.* got 5 shards"):
        source(shards[1:]).resume(state)


def test_of_a_lane_that_two_processes_know_the_cursor_furthest_on_counts():
    parts = [{"a": {0: Cursor(given=4), 1: Cursor(given=1)}}, {"a": {0: Cursor(given=2)}, "b": {}}]
    assert furthest(parts) == {"a": {0: Cursor(given=4), 1: Cursor(given=1)}, "b": {}}
    counts = {"a": {0: Cursor(dropped={"x": 2, "b": 1}), 1: Cursor(dropped={"x": 3})}, "c": {}}
    assert dropped(counts) == {"a": {"b": 1, "x": 5}, "c": {}}


def test_a_step_that_takes_several_rows_of_a_lane_leaves_it_after_the_last(
    shards, tokenizer: PreTrainedTokenizerFast
):
    def mixture() -> Mixture:
        toy = source(shards, lanes=2)
        return Mixture([toy], [SourceConfig(sequences=5)], tokenizer, 64)

    first, second = mixture(), mixture()
    expected = [[row.input_ids for _, row in first.step(step)] for step in range(5)]
    cursors = first.cursors(2)
    assert {lane: cursor.given for lane, cursor in cursors["toy"].items()} == {0: 8, 1: 7}
    second.resume(first.stream_state(cursors))
    assert [[row.input_ids for _, row in second.step(s)] for s in (3, 4)] == expected[3:]


def test_a_forked_process_opens_files_of_its_own(tmp_path):
    shards = write_shards(tmp_path, [300])  # more than Python reads ahead of a file
    toy = source(shards, lanes=1, shuffle=1)
    straight = names(source(shards, lanes=1, shuffle=1), range(300))
    assert names(toy, range(3)) == straight[:3]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, "\n".join(names(toy, range(3, 300))).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10_000).decode().split() == straight[3:]
    assert names(toy, range(3, 300)) == straight[3:]


def test_a_source_can_be_sent_to_another_process(shards):
    toy = source(shards)
    straight = names(toy, range(8))
    assert names(pickle.loads(pickle.dumps(toy)), range(8)) == straight


# ---------------------------------------------------------------------------- what is dropped


def counts_after(toy: StreamSource, lanes: int, rows: int) -> Counter[str]:
    return sum((Counter(toy.after(i).dropped) for i in range(rows - lanes, rows)), Counter())


def test_broken_images_and_lines_are_counted_and_the_next_document_takes_their_place(tmp_path):
    shards = write_shards(tmp_path, [5, 6], ["0-0", "0-3", "1-1"], not_json=1)
    toy = source(shards, lanes=1, shuffle=4)
    rows = names(toy, range(8))
    kept = {"0-1", "0-2", "0-4", "1-0", "1-2", "1-3", "1-4", "1-5"}
    assert set(rows) == kept
    assert set(names(toy, range(8, 16))) == kept
    assert toy.after(15).dropped == {"broken image": 6, "malformed record": 4}


def test_a_broken_shard_is_passed_over_counted_and_logged(tmp_path, caplog):
    shards = write_shards(tmp_path, SIZES)
    expected = {f"{s}-{n}" for s, size in enumerate(SIZES) for n in range(size)}
    expected -= {"3-3", "3-4"}  # behind the break
    toy = source(shards, lanes=1, read=breaking)
    with caplog.at_level(logging.WARNING):
        rows = names(toy, range(len(expected)))
    assert set(rows) == expected and len(set(rows)) == len(rows)
    toy.sequence(len(expected))
    assert toy.after(len(expected)).dropped == {"broken shard": 1}
    assert "toy: broken shard passed over" in caplog.text and "cut off" in caplog.text


def test_a_broken_shard_that_lanes_share_is_counted_once_an_epoch(tmp_path):
    shards = write_shards(tmp_path, [0, 0, 0, 30])
    toy = source(shards[3:], lanes=5, shuffle=1, read=breaking)
    stream = toy._stream
    made = [m for lane in range(5) for _, m in stream.documents(stream.shares(lane, 0), 0)]
    assert Counter(m.reason for m in made if isinstance(m, Dropped)) == {"broken shard": 1}
    assert sum(isinstance(m, InterleavedSequence) for m in made) == 3


def test_a_file_that_cannot_be_read_is_a_broken_shard(tmp_path):
    shards = write_shards(tmp_path, [3, 3])
    os.remove(shards[0])
    toy = source(shards, lanes=1)
    assert set(names(toy, range(3))) == {"1-0", "1-1", "1-2"}


def test_a_source_of_which_everything_is_dropped_is_an_error_with_the_counts(tmp_path):
    broken = [f"{s}-{n}" for s in range(2) for n in range(3)]
    shards = write_shards(tmp_path, [3, 3], broken, not_json=2)
    for lanes in (1, 2, 5):
        with pytest.raises(ValueError, match="epoch 0 .2 shards.*6 broken image .*, 4 malformed"):
            source(shards, lanes=lanes).sequence(0)
    with pytest.raises(ValueError, match="nothing, the shards are empty"):
        source(write_shards(tmp_path / "empty", [0, 0]), lanes=1).sequence(0)


def test_more_lanes_than_documents_are_no_error(tmp_path):
    shards = write_shards(tmp_path, [2, 1])
    toy = source(shards, lanes=16, shuffle=2)
    assert Counter(names(toy, range(64))).keys() == {"0-0", "0-1", "1-0"}


@pytest.mark.parametrize("shuffle", [1, 3])
@pytest.mark.parametrize("sizes", [[20], [3, 9, 0]])
def test_more_lanes_than_documents_read_a_shard_a_few_times_each(tmp_path, sizes, shuffle):
    shards, lanes = write_shards(tmp_path, sizes), 60
    opened: list[str] = []

    def read(shard: str) -> Iterator[Record]:
        opened.append(shard)
        return read_lines(shard)

    toy = source(shards, lanes=lanes, shuffle=shuffle, read=read)
    rows = names(toy, range(2 * lanes))
    assert len(opened) <= 8 * lanes
    # A lane that does not know how many records there are goes through every epoch.
    for lane in range(0, lanes, 7):
        stream = stream_of(shards, lanes=lanes, shuffle=shuffle)
        found, epoch = [], 0
        while len(found) < 2:
            made = stream.documents(stream.shares(lane, epoch), epoch)
            block = Lane(stream, lane, Cursor(epoch=epoch))
            found += [(epoch, name_of(block.next())) for _ in made]
            epoch += 1
        assert [name for _, name in found[:2]] == rows[lane::lanes]
        own = source(shards, lanes=lanes, shuffle=shuffle)
        assert [own.after(lane), own.after(lane + lanes)] == [
            toy.after(lane),
            toy.after(lane + lanes),
        ]


def test_a_disk_that_fails_is_not_a_broken_image(shards, monkeypatch):
    def fails(path: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("flamingo.data.stored_images.open_image", fails)
    with pytest.raises(OSError, match="Input/output error"):
        source(shards).sequence(0)


def test_many_documents_dropped_in_a_row_are_warned_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("flamingo.data.lanes.WARN_AFTER", 4)
    shards = write_shards(tmp_path, [1], not_json=9)
    with caplog.at_level(logging.WARNING):
        assert set(names(source(shards, lanes=1, shuffle=1), range(5))) == {"0-0"}
    assert "the last 8 documents of lane 0 were all dropped: {'malformed record': 8}" in caplog.text


def test_the_first_broken_image_is_named_and_many_in_a_row_are_warned_of(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("flamingo.data.lanes._told", set())
    monkeypatch.setattr("flamingo.data.lanes.WARN_AFTER", 4)
    shards = write_shards(tmp_path, [3, 9], [f"1-{number}" for number in range(9)])
    with caplog.at_level(logging.WARNING):
        names(source(shards, lanes=1, shuffle=1), range(12))
    what = f"{tmp_path}/images/broken.png: expected an image"
    told = [message for message in caplog.messages if "dropped as broken image" in message]
    assert len(told) == 1 and told[0].startswith(f"toy: dropped as broken image: {what}")
    assert "the last 8 documents of lane 0 were all dropped: {'broken image': 8}" in caplog.text


def test_a_source_without_its_images_is_an_error_that_names_one(tmp_path):
    shards = write_shards(tmp_path, [3])
    shutil.rmtree(tmp_path / "images")
    missing = rf"3 broken image \(such as {tmp_path}/images/\d.png: no such image file\)$"
    with pytest.raises(ValueError, match=missing):
        source(shards, lanes=1).sequence(0)


@pytest.mark.parametrize("field", ["lanes", "shuffle"])
def test_what_cannot_be_is_refused(shards, field):
    with pytest.raises(ValueError, match=f"toy.{field}: expected >= 1, got 0"):
        source(shards, **{field: 0})
    with pytest.raises(ValueError, match=r"toy.shards: expected at least one"):
        StreamSource("toy", [], read_lines, parse_segments, 0, 1, 1)


# ---------------------------------------------------------------------------- fitting

IMAGE, END = 512, 513
A, B = (Media((ImageRef(name, Path),)) for name in "ab")  # never opened


def fitted(
    tokenizer: PreTrainedTokenizerFast, *segments: Text | Media, **limits
) -> InterleavedSequence | Dropped:
    def parse(record: Record, generator: np.random.Generator) -> InterleavedSequence:
        return InterleavedSequence(segments)

    fitting = Fitting(parse, tokenizer, **({"max_tokens": 20} | limits))
    return fitting({}, np.random.default_rng(0))


def test_a_document_without_a_token_to_learn_or_with_too_many_is_dropped(
    tokenizer: PreTrainedTokenizerFast,
):
    assert fitted(tokenizer, A, Text(" yes")) == Dropped("nothing to learn")
    assert fitted(tokenizer, Text("This", learn=True)) == Dropped("nothing to learn")  # the first
    long = Text("This" + " yes" * 20, learn=True)
    assert fitted(tokenizer, A, long) == Dropped("too many tokens")
    whole = (A, Text(" yes", learn=True))
    assert fitted(tokenizer, *whole) == InterleavedSequence(whole)


def test_a_document_with_clips_of_different_lengths_is_dropped_unless_they_are_cut(
    tokenizer: PreTrainedTokenizerFast,
):
    clip = Media((*A.frames, *B.frames))
    segments = A, Text(" yes", learn=True), clip
    assert fitted(tokenizer, *segments) == Dropped("clips of different lengths")
    assert fitted(tokenizer, *segments, cut_to=2) == InterleavedSequence(segments[:2])
    assert isinstance(fitted(tokenizer, clip, Text(" yes", learn=True)), InterleavedSequence)


def test_a_document_with_a_longer_clip_than_can_be_read_is_dropped(
    tokenizer: PreTrainedTokenizerFast,
):
    segments = Media((*A.frames, *B.frames)), Text(" yes", learn=True)
    assert fitted(tokenizer, *segments, max_frames=1) == Dropped("too many frames")
    for most in (2, None):
        assert isinstance(fitted(tokenizer, *segments, max_frames=most), InterleavedSequence)
    text = Text("This yes", learn=True)
    assert fitted(tokenizer, text, max_frames=1) == InterleavedSequence((text,))


@pytest.mark.parametrize("limit", range(2, 10))
def test_a_document_is_cut_at_a_token_and_what_is_behind_goes(
    tokenizer: PreTrainedTokenizerFast, limit
):
    yes, this = tokenizer.convert_tokens_to_ids(["Ġyes", "This"])
    segments = (
        *(Text("This"), A, Text("This yes yes<|endofchunk|>", learn=True)),
        *(B, Text(" yes", learn=True)),
    )
    ids = (this, IMAGE, this, yes, yes, END, IMAGE, yes)
    made = fitted(tokenizer, *segments, cut_to=limit)
    if limit == 2:
        assert made == Dropped("nothing to learn")
        return
    assert isinstance(made, InterleavedSequence)
    row = tokenize(made, tokenizer, limit)
    assert row.input_ids == ids[:limit]
    assert row.labels == (-100, -100, this, yes, yes, END, -100, yes)[:limit]
    assert row.media == ((A, B) if limit >= 7 else (A,))


def test_a_document_that_is_cut_may_still_be_too_long(tokenizer: PreTrainedTokenizerFast):
    segments = (A, Text(" yes" * 9, learn=True))
    assert isinstance(fitted(tokenizer, *segments, cut_to=5, max_tokens=5), InterleavedSequence)
    assert fitted(tokenizer, *segments, cut_to=6, max_tokens=5) == Dropped("too many tokens")
