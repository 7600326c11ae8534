"""Leave to open the files of a stream's lanes."""

from __future__ import annotations

import resource

import pytest

from flamingo.config import DataConfig
from flamingo.data.open_files import OTHERS, allow_open_files, files_of_lanes
from flamingo.source_config import CaptionShardsSourceConfig, ShardsConfig


def streams(workers: int = 4) -> DataConfig:
    captions = CaptionShardsSourceConfig(
        shards=ShardsConfig(files=["x.tar"]), sequences=4096, lanes=4, shuffle=1
    )
    return DataConfig(captions=captions, workers=workers, cache_features=False)


@pytest.fixture
def limits(monkeypatch) -> list[int]:
    """The soft and the hard limit."""
    own = [1024, 1 << 20]
    monkeypatch.setattr(resource, "getrlimit", lambda what: (own[0], own[1]))
    monkeypatch.setattr(resource, "setrlimit", lambda what, new: own.__setitem__(slice(2), new))
    return own


def test_each_worker_of_each_process_has_its_share_of_the_lanes():
    assert files_of_lanes(streams(workers=0), 1) == 4 * 4096
    assert files_of_lanes(streams(workers=4), 8) == 4 * 4096 // 32
    assert files_of_lanes(DataConfig(), 1) == 0


def test_the_soft_limit_is_raised_as_far_as_needed(limits):
    allow_open_files(streams(), 1)
    assert limits == [4096 + OTHERS, 1 << 20]
    allow_open_files(streams(), 8)
    assert limits == [4096 + OTHERS, 1 << 20], "never lowered"


def test_without_streams_it_stays(limits):
    allow_open_files(DataConfig(), 1)
    assert limits == [1024, 1 << 20]


def test_a_hard_limit_below_is_refused_at_once(limits):
    limits[1] = 4096
    with pytest.raises(ValueError, match=r"expected leave to have 4,608 files open .* got 4,096"):
        allow_open_files(streams(), 1)
    assert limits == [1024, 4096]


def test_no_limit_is_no_limit(limits):
    limits[:] = [resource.RLIM_INFINITY, resource.RLIM_INFINITY]
    allow_open_files(streams(), 1)
    limits[0] = 1024
    allow_open_files(streams(), 1)
    assert limits == [4096 + OTHERS, resource.RLIM_INFINITY]
