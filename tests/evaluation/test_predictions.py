"""The log of predictions: torn anywhere, shared by several writers, it holds each whole line."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from flamingo.evaluation.predictions import BLOCK, Prediction, PredictionFile


def prediction(number: int, prompt: str = "<image>what is it?") -> Prediction:
    return Prediction(
        key=f"{number:016x}",
        model="m",
        query=f"test/{number}",
        shots=0,
        demonstrations=[],
        prompt_hash="h",
        prompt=prompt,
        candidates=[],
        raw=" röd\n",
        answer="röd",
        target="red",
        probability=0.5,
        score=0.0,
        group="",
        cluster="",
        references=["red"],
    )


ALL = [prediction(number) for number in range(6)]


def written(path: Path, predictions: list[Prediction]) -> bytes:
    file = PredictionFile(path)
    for own in predictions:
        file.append([own])
    return path.read_bytes()


def test_what_was_appended_is_read_back(tmp_path) -> None:
    file = PredictionFile(tmp_path / "a" / "real.jsonl")
    file.append(ALL[:2])
    assert file.read_on() == 2
    PredictionFile(file.path).append(ALL[2:3])  # by another process
    assert file.read_on() == 1
    assert file.read_on() == 0
    assert list(file.by_key.values()) == ALL[:3]
    assert list(PredictionFile(file.path).by_key.values()) == ALL[:3]


def offsets(content: bytes) -> list[int]:
    """Every byte of the last three lines, and some of the others."""
    third = content.rstrip(b"\n").split(b"\n")[-3]
    last = content.index(third)
    return [*random.Random(0).sample(range(last), 10), *range(last, len(content) + 1)]


def test_torn_at_any_byte_it_keeps_whole_lines_and_goes_on(tmp_path) -> None:
    content = written(tmp_path / "whole.jsonl", ALL)
    path = tmp_path / "torn.jsonl"
    for offset in offsets(content):
        path.write_bytes(content[:offset])
        file = PredictionFile(path)
        finished = content[:offset].count(b"\n")
        assert list(file.by_key.values()) == ALL[:finished], offset
        assert path.read_bytes() == content[:offset], "reading alone changes nothing"
        if finished < len(ALL):
            file.append(ALL[finished:])
        assert path.read_bytes() == content, offset
        assert file.read_on() == len(ALL) - finished
        assert file.by_key == {own.key: own for own in ALL}


def test_a_torn_line_longer_than_a_block_is_cut_off_whole(tmp_path) -> None:
    path = tmp_path / "real.jsonl"
    first = written(path, ALL[:1])
    content = written(path, [prediction(1, prompt="x" * 3 * BLOCK)])
    path.write_bytes(content[:-1])
    assert written(path, ALL[1:2]).startswith(first)
    assert list(PredictionFile(path).by_key.values()) == ALL[:2]
    path.write_bytes(content[len(first) : -1])  # the only line
    written(path, ALL[2:3])
    assert list(PredictionFile(path).by_key.values()) == ALL[2:3]


@pytest.mark.parametrize("line", [b'{"key": 1}', b"not JSON", b"", b"[]", b"\xff"])
def test_any_other_damage_is_named_with_file_and_line(tmp_path, line: bytes) -> None:
    path = tmp_path / "real.jsonl"
    content = written(path, ALL)
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], line + b"\n", *lines[3:]]))
    with pytest.raises(ValueError, match=r"real.jsonl, line 4: expected a prediction"):
        PredictionFile(path)
    path.write_bytes(b"".join(lines))
    file = PredictionFile(path)
    path.write_bytes(b"".join([*lines, line + b"\n"]))
    with pytest.raises(ValueError, match=r"real.jsonl, line 7: expected a prediction"):
        file.read_on()


def test_writers_at_the_same_time_do_not_mix_their_lines(tmp_path) -> None:
    path = tmp_path / "real.jsonl"
    path.write_bytes(b'{"torn')

    def write(writer: int) -> None:
        file = PredictionFile(path)
        for number in range(25):
            file.append([prediction(100 * writer + number)])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = [json.loads(line)["key"] for line in path.open()]
    assert sorted(keys) == [f"{100 * w + n:016x}" for w in range(4) for n in range(25)]


def test_nobody_cuts_or_appends_while_another_holds_the_log(tmp_path) -> None:
    path = tmp_path / "real.jsonl"
    path.write_bytes(b'{"half a li')
    with FileLock(tmp_path / ".real.lock"):
        thread = threading.Thread(target=PredictionFile(path).append, args=(ALL[:1],))
        thread.start()
        thread.join(timeout=0.1)
        assert thread.is_alive()
        assert path.read_bytes() == b'{"half a li'
    thread.join()
    assert list(PredictionFile(path).by_key.values()) == ALL[:1]


def test_a_full_disk_is_named_and_costs_one_line(tmp_path, monkeypatch) -> None:
    path = tmp_path / "real.jsonl"
    file = PredictionFile(path)
    file.append(ALL[:1])
    monkeypatch.setattr("flamingo.evaluation.predictions.asdict", lambda _: {"key": "x" * 10**6})
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, limits[1]))
    try:
        with pytest.raises(OSError, match=r"while appending to .*real.jsonl"):
            file.append(ALL[1:2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    monkeypatch.undo()
    PredictionFile(path).append(ALL[1:2])
    assert list(PredictionFile(path).by_key.values()) == ALL[:2]
