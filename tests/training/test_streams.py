"""Training on streams: the same rows whoever prepares them, and after any interruption."""

import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from test_loop import assert_same_run, metrics_of, train_and_stop
from tiny_stream_run import KILLED, save_data, stream_config, stream_train, tiny_mixture

from flamingo.choices import Mixing
from flamingo.data.cursor import furthest
from flamingo.data.division import Division
from flamingo.data.mixture import UNSEEN
from flamingo.model.processor import prepare_tokenizer
from flamingo.run_directory import RunDirectory
from flamingo.testing import VOCABULARY, tiny_tokenizer
from flamingo.training.batches import Steps
from flamingo.training.checkpoint import (
    latest_checkpoint,
)
from flamingo.types import Batch

SCRIPT = Path(__file__).with_name("tiny_stream_run.py")
ROOT = SCRIPT.parents[2]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return save_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory, data) -> RunDirectory:
    """A run of 8 steps without interruption or workers."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    result, run = stream_train(stream_config(tmp_path_factory.mktemp("straight")), data)
    assert result.finished
    return run


# ---------------------------------------------------------------------------- steps


def text_of(rows, sources) -> Batch:
    """A batch that holds the rows' ids alone, as wide as the widest."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r.input_ids) for r in rows], True)
    source = torch.tensor(sources)[:, None].expand_as(ids)
    return Batch(ids, torch.ones_like(ids), ids, source)


def steps(data: Path, rank: int = 0, world: int = 1, state=None) -> Steps:
    tokenizer = prepare_tokenizer(tiny_tokenizer(), VOCABULARY)
    mixture = tiny_mixture(data, tokenizer)
    if state is not None:
        mixture.resume(state)
    return Steps(mixture, text_of, Division(), rank, world)


def rows_of(step) -> list[tuple[int, ...]]:
    (batch,) = step.micro_batches
    ids = [tuple(i for i in row if i) for row in batch.input_ids.tolist()]
    return list(zip(batch.source[:, 0].tolist(), ids, strict=True))


@pytest.fixture(scope="module")
def first_steps(data):
    """12 steps of one process without workers."""
    return list(steps(data).iterate(range(12), workers=0))


@pytest.mark.parametrize("workers", [2, 3])  # of lanes for 2 groups of steps
def test_workers_give_the_same_rows_and_cursors(data, first_steps, workers):
    made = list(steps(data).iterate(range(12), workers))
    assert [rows_of(step) for step in made] == [rows_of(step) for step in first_steps]
    assert [step.cursors for step in made] == [step.cursors for step in first_steps]


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (2, 2), (3, 0)])
def test_ranks_share_the_same_rows_and_between_them_know_all_cursors(
    data, first_steps, world, workers
):
    ranks = [list(steps(data, rank, world).iterate(range(12), workers)) for rank in range(world)]
    for parts, whole in zip(zip(*ranks, strict=True), first_steps, strict=True):
        expected = rows_of(whole)
        assert [rows_of(part) for part in parts] == [expected[r::world] for r in range(world)]
        assert furthest(part.cursors for part in parts) == whole.cursors


def test_each_worker_and_rank_reads_lanes_of_its_own(data):
    ranks = [list(steps(data, rank, 2).iterate(range(12), 0)) for rank in range(2)]
    parts = [
        {(name, lane) for step in own for name in step.cursors for lane in step.cursors[name]}
        for made in ranks
        for own in (made[::2], made[1::2])
    ]
    assert sum(len(part) for part in parts) == 8 + 4
    assert all(not a & b for a, b in itertools.combinations(parts, 2))


@pytest.mark.parametrize("stop", [1, 5])
@pytest.mark.parametrize(("world", "workers"), [(1, 3), (2, 0)])
def test_resumed_with_another_world_or_workers_no_row_is_lost_or_seen_twice(
    data, first_steps, stop, world, workers
):
    two = [list(steps(data, rank, 2).iterate(range(stop), workers=2)) for rank in range(2)]
    positions = furthest(step.cursors for made in two for step in made)
    state = steps(data)._mixture.stream_state(positions)
    ranks = [
        list(steps(data, rank, world, state).iterate(range(stop, 12), workers))
        for rank in range(world)
    ]
    for made, rank in zip(ranks, range(world), strict=True):
        for part, whole in zip(made, first_steps[stop:], strict=True):
            assert rows_of(part) == rows_of(whole)[rank::world]


def test_unseen_steps_are_made_of_the_held_out_shards_and_always_the_same(data):
    made = steps(data)
    seen = {row for step in made.iterate(range(12), 0) for row in rows_of(step)}
    unseen = [rows_of(step) for step in made.iterate(range(UNSEEN, UNSEEN + 2), 0)]
    assert len(unseen[0]) == 4 and unseen[0] != unseen[1]  # the second source holds nothing out
    assert not seen & {row for rows in unseen for row in rows}
    assert [rows_of(step) for step in made.iterate(range(UNSEEN, UNSEEN + 2), 0)] == unseen
    assert made[UNSEEN].cursors == {}


# ---------------------------------------------------------------------------- training


def test_what_was_dropped_is_logged_by_source_and_reason(straight):
    first, *_, last = metrics_of(straight)
    assert last["data/a/dropped/broken image"] > first.get("data/a/dropped/broken image", 0)
    assert last["data/a/dropped/broken shard"] >= 1
    assert last["data/b/dropped/malformed record"] >= 1
    assert "validation/loss/a" in last and "validation/loss/b" not in last


@pytest.mark.parametrize(("stop_after", "workers"), [(3, 0), (5, 2)])
def test_interrupted_and_continued_equals_straight_bit_for_bit(
    tmp_path, data, straight, stop_after, workers
):
    config = stream_config(tmp_path, workers=workers)
    first = train_and_stop(config, stop_after, train_with=partial(stream_train, data=data))
    assert (first.finished, first.steps) == (False, stop_after)
    config.data.workers = 3
    second, run = stream_train(config, data)
    assert second.finished
    assert_same_run(run, straight)
    streams = [latest_checkpoint(r.checkpoints).state()["streams"] for r in (run, straight)]
    assert streams[0] == streams[1] and streams[0]["a"]["lanes"]["0"]["given"] >= 4


@pytest.mark.parametrize("stop_after", [3, 4])  # in the middle of a turn of both, and behind one
def test_sources_in_turn_continue_bit_for_bit(tmp_path, data, stop_after):
    runs = []
    for name in ("straight", "stopped"):
        config = stream_config(tmp_path / name, workers=2, log_every=1)
        config.data.mixing = Mixing.round_robin
        if name == "stopped":
            train_and_stop(config, stop_after, train_with=partial(stream_train, data=data))
            config.data.workers = 3
        result, run = stream_train(config, data)
        assert result.finished
        runs.append(run)
    assert_same_run(*runs)
    logged = metrics_of(runs[0])
    turns = [{"train/loss/a", "train/loss/b"} & entry.keys() for entry in logged]
    assert turns == [{"train/loss/a"}, {"train/loss/b"}] * 4
    given = latest_checkpoint(runs[0].checkpoints).state()["streams"]
    counts = {n: sum(c["given"] for c in s["lanes"].values()) for n, s in given.items()}
    assert counts == {"a": 4 * 4, "b": 4 * 2}


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_continues_bit_for_bit(tmp_path, data):
    """With workers; in processes forked of one that has imported everything."""
    subprocess.run(
        [sys.executable, str(SCRIPT), "killed", str(tmp_path), str(data), "20"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=900,
    )
    runs = [stream_config(tmp_path / name, **KILLED) for name in ("straight", "killed")]
    assert_same_run(*(RunDirectory(config.directory, config) for config in runs))


@pytest.mark.slow
def test_one_process_continues_what_two_began(tmp_path, data, straight):
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
            *("--standalone", "--no_python", sys.executable),
            *(str(SCRIPT), "stopped", str(tmp_path), str(data), "5"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=True,
    )
    config = stream_config(tmp_path)
    saved = latest_checkpoint(RunDirectory(config.directory, config).checkpoints)
    assert saved.step == 5 and len(saved.state()["random"]) == 2
    result, run = stream_train(config, data)
    assert result.finished
    for one, other in zip(metrics_of(run), metrics_of(straight), strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    streams = [latest_checkpoint(r.checkpoints).state()["streams"] for r in (run, straight)]
    assert streams[0] == streams[1]
