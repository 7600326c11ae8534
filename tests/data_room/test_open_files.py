"""Leave to open the files of a stream's lanes."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest
import torch

from flamingo.choices import ClipStorage, Mixing
from flamingo.config import DataConfig, EasyVQASourceConfig, RunConfig, TrainingConfig
from flamingo.data import open_files
from flamingo.data.division import Division
from flamingo.data.mixture import Mixture
from flamingo.data.open_files import OTHERS, allow_open_files, files_of_lanes, files_of_process
from flamingo.source_config import (
    CaptionShardsSourceConfig,
    ClipsSourceConfig,
    COCOCaptionsSourceConfig,
    MMC4SourceConfig,
    ShardsConfig,
)
from flamingo.training.batches import Steps
from flamingo.types import Batch
from tests.toy_stream import source, write_shards

PLACE = ShardsConfig(files=["x.tar"])
STEP = 6 + 1
"""Tensors of a step of one micro-batch."""


def streams(workers: int = 4) -> DataConfig:
    captions = CaptionShardsSourceConfig(shards=PLACE, sequences=4096, lanes=4, shuffle=1)
    return DataConfig(captions=captions, workers=workers, cache_features=False)


def run_of(data: DataConfig, **training) -> RunConfig:
    return RunConfig(name="x", data=data, training=TrainingConfig(**training))


@pytest.fixture
def limits(monkeypatch) -> list[int]:
    """The soft and the hard limit."""
    own = [1024, 1 << 20]
    monkeypatch.setattr(resource, "getrlimit", lambda what: (own[0], own[1]))
    monkeypatch.setattr(resource, "setrlimit", lambda what, new: own.__setitem__(slice(2), new))
    return own


# ---------------------------------------------------------------------------- how many


def test_each_worker_of_each_process_has_its_share_of_the_lanes():
    assert files_of_lanes(streams(workers=0), 1) == 4 * 4096
    assert files_of_lanes(streams(workers=4), 8) == 4 * 4096 // 32
    assert files_of_lanes(streams(workers=3), 1) == 4 * 4096, "each meets every lane"
    assert files_of_lanes(streams(workers=8), 4) == 4096 // 4
    assert files_of_lanes(DataConfig(), 1) == 0


def mixture_of(config: DataConfig, tokenizer) -> Mixture:
    """Of lanes that nothing is read from."""
    sources = [
        source(["x"], name, lanes=own.lanes * own.sequences) for name, own in config.streams.items()
    ]
    return Mixture(sources, config.sources, tokenizer, 9, config.mixing)


@pytest.mark.parametrize("mixing", Mixing)
@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_no_worker_meets_more_lanes_than_are_reckoned(tokenizer, mixing, workers, processes):
    config = DataConfig(
        mmc4=MMC4SourceConfig(shards=PLACE, sequences=6, lanes=4),
        captions=CaptionShardsSourceConfig(shards=PLACE, sequences=13, lanes=6),
        workers=workers,
        mixing=mixing,
        cache_features=False,
    )
    mixture, each = mixture_of(config, tokenizer), max(1, workers)
    most = 0
    for rank in range(processes):
        for worker in range(each):
            lanes = {
                (of, mixture.streams[mixture.names[of]].place(position)[0])
                for step in range(worker, 24 * each, each)
                for of, position in mixture._rows(mixture._seen(), step, rank, processes)
            }
            most = max(most, len(lanes))
    assert most <= files_of_lanes(config, processes) <= most + 4 * 6  # rows in uneven shares


def test_what_is_in_memory_or_a_file_of_its_own_keeps_none_open():
    config = DataConfig(
        coco_captions=COCOCaptionsSourceConfig(annotations="a", images="b"),
        clips=ClipsSourceConfig(storage=ClipStorage.folders, folder="c"),
        cache_features=False,
    )
    assert files_of_lanes(config, 1) == 0


def test_held_out_lanes_are_open_in_the_process_itself():
    captions = CaptionShardsSourceConfig(shards=PLACE, validation="y.tar", sequences=30, lanes=2)
    for workers, without, expected in ((0, 60, 60 + 30), (2, 30 + STEP, 30 + 3 * STEP)):
        data = DataConfig(captions=captions, workers=workers, cache_features=False)
        assert files_of_process(run_of(data), 1) == without
        assert files_of_process(run_of(data, eval_every=1), 1) == expected


def test_tensors_on_their_way_are_counted_by_micro_batches():
    data = DataConfig(easy_vqa=EasyVQASourceConfig(sequences=40), workers=3)
    assert files_of_process(run_of(data), 1) == 4 * STEP
    assert files_of_process(run_of(data, micro_batches=8), 1) == 4 * (6 * 8 + 1)
    assert files_of_process(run_of(data, micro_batch_tokens=1024), 2) == 4 * (6 * 10 + 1)


# ---------------------------------------------------------------------------- the limit


def test_the_soft_limit_is_raised_as_far_as_needed(limits):
    allow_open_files(run_of(streams()), 1)
    assert limits == [4096 + STEP + OTHERS, 1 << 20]
    allow_open_files(run_of(streams()), 8)
    assert limits == [4096 + STEP + OTHERS, 1 << 20], "never lowered"


def test_without_streams_it_stays(limits):
    allow_open_files(run_of(DataConfig()), 1)
    assert limits == [1024, 1 << 20]


def test_a_hard_limit_below_is_refused_at_once(limits):
    limits[1] = 4096
    with pytest.raises(ValueError, match=r"expected leave to have 4,615 files open .* got 4,096"):
        allow_open_files(run_of(streams()), 1)
    assert limits == [1024, 4096]


def test_no_limit_is_no_limit(limits):
    limits[:] = [resource.RLIM_INFINITY, resource.RLIM_INFINITY]
    allow_open_files(run_of(streams()), 1)
    limits[0] = 1024
    allow_open_files(run_of(streams()), 1)
    assert limits == [4096 + STEP + OTHERS, resource.RLIM_INFINITY]


def collated(rows, sources) -> Batch:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.input_ids) for row in rows], True)
    pixels = torch.zeros(len(rows), 1, 1, 3, 1, 1)
    return Batch(ids, ids.clone(), ids.clone(), ids.clone(), pixel_values=pixels)


@pytest.fixture
def soft_limit() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_workers_get_along_with_what_is_reckoned(tmp_path, tokenizer, monkeypatch, soft_limit):
    captions = CaptionShardsSourceConfig(shards=PLACE, sequences=30, lanes=2)
    data = DataConfig(captions=captions, workers=2, cache_features=False)
    shards = write_shards(tmp_path, [3] * 60)
    toy = source(shards, "captions", lanes=60, shuffle=1)
    mixture = Mixture([toy], data.sources, tokenizer, 64)
    steps = Steps(mixture, collated, Division(30), 0, 1)
    # What is open already, and a few more for the processes themselves.
    monkeypatch.setattr(open_files, "OTHERS", len(os.listdir("/proc/self/fd")) + 25)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, soft_limit[1]))
    allow_open_files(run_of(data, micro_batches=30), 1)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1024
    done = 0
    for _ in steps.iterate(range(12), data.workers):  # each let go when the next one comes
        done += 1
    assert done == 12
