"""A tiny training run on two streams: imported by the tests, and run by them as a process.

``python tiny_stream_run.py killed <folder> <data> <kills>`` trains once without interruption and
once killed ``kills`` times; ``stopped <folder> <data> <step>`` ends after a step by SIGTERM.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from tiny_run import slowly, tiny_config, tiny_parts

from flamingo.choices import Mixing
from flamingo.config import RunConfig, SourceConfig
from flamingo.data.documents import BrokenShard, Record
from flamingo.data.features import PixelLoader
from flamingo.data.mixture import Mixture
from flamingo.run_directory import RunDirectory
from flamingo.testing import tiny_vision_encoder
from flamingo.training import loop
from flamingo.training.distributed import leave_processes
from flamingo.training.loop import TrainingResult, train
from flamingo.training.tracking import read_metrics
from tests.toy_stream import read_lines, source, write_shards

KILLED = {"steps": 60, "checkpoint_every": 2, "log_every": 1, "eval_every": 1, "workers": 2}
WORKERS = 2


def save_data(folder: Path) -> Path:
    """Shards of two sources, and held-out ones for the first; with all that can be wrong."""
    broken = [f"{shard}-{number}" for shard in range(12) for number in (1, 4)]
    write_shards(folder / "a", [9, 7, 8, 9, 6, 5, 9, 8, 7, 6, 5, 9], broken)
    write_shards(folder / "held_out", [0] * 20 + [9])  # names that no other document has
    write_shards(folder / "b", [3, 2, 3, 4], not_json=2)
    return folder


def read_cut_off(shard: str) -> Iterator[Record]:
    """JSON lines, of which every third shard breaks off."""
    for number, record in enumerate(read_lines(shard)):
        if number == 3 and Path(shard).stem in ("002", "005", "008", "011"):
            raise BrokenShard(shard, "cut off")
        yield record


def tiny_mixture(data: Path, tokenizer, mixing: Mixing = Mixing.accumulate) -> Mixture:
    """Streams ``a`` of 4 sequences and ``b`` of 2, with lanes for two groups of steps."""
    shards = [[str(p) for p in sorted((data / n).glob("*.jsonl"))] for n in ("a", "b", "held_out")]
    first = source(shards[0], "a", lanes=8, shuffle=3, read=read_cut_off)
    first.held_out = source(shards[2], "a", lanes=4, shuffle=1)
    second = source(shards[1], "b", lanes=4, shuffle=4)
    shares = [SourceConfig(sequences=4), SourceConfig(sequences=2, loss_weight=0.5)]
    return Mixture([first, second], shares, tokenizer, max_tokens=64, mixing=mixing)


def stream_config(folder: Path, workers: int = 0, **training) -> RunConfig:
    config = tiny_config(folder, **training)
    config.data.cache_features = False
    config.data.workers = workers
    return config


def stream_train(config: RunConfig, data: Path, **options) -> tuple[TrainingResult, RunDirectory]:
    run = RunDirectory.open(config)
    model, tokenizer, _, _ = tiny_parts(config)
    load_media = PixelLoader(tiny_vision_encoder().transform)
    mixture = tiny_mixture(data, tokenizer, config.data.mixing)
    return train(config, model, tokenizer, mixture, load_media, run, **options), run


# ---------------------------------------------------------------------------- as a process


def forked(config: RunConfig, data: Path) -> int:
    """A child process that trains; this one has only imported what it needs for it."""
    child = os.fork()
    if child:
        os.setpgid(child, child)  # a group of its own, with its workers, from the first moment
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        status = int(not stream_train(config, data, callback=slowly)[0].finished)
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def train_killed(folder: Path, data: Path, kills: int) -> None:
    """The run in ``straight``, and the one in ``killed``."""
    straight = stream_config(folder / "straight", **KILLED)
    assert os.waitstatus_to_exitcode(os.waitpid(forked(straight, data), 0)[1]) == 0
    config = stream_config(folder / "killed", **KILLED)
    metrics = RunDirectory(config.directory, config).metrics
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    print(f"seed {seed}")

    def step() -> int:
        entries = read_metrics(metrics)
        return entries[-1]["step"] if entries else 0

    reached = []
    for _ in range(kills):
        goal = min(step() + moments.randint(0, 2), config.training.steps - 8)
        child = forked(config, data)
        while step() < goal:
            time.sleep(0.01)
            assert os.waitpid(child, os.WNOHANG) == (0, 0), f"seed {seed}: it ended by itself"
        time.sleep(moments.uniform(0, 0.3))  # less than eight steps: each takes 0.05 s
        # Either all at once (the machine), or the training process alone (out of memory).
        (os.killpg if moments.random() < 0.5 else os.kill)(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, f"seed {seed}"
        reached.append(step())
    print(f"killed after steps {reached}")
    assert os.waitstatus_to_exitcode(os.waitpid(forked(config, data), 0)[1]) == 0, f"seed {seed}"


def train_stopped(folder: Path, data: Path, after: int) -> None:
    """Train until SIGTERM arrives during step ``after``."""
    step = loop._Loop._step

    def step_with_signal(self, *arguments):
        if self.done == after - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    loop._Loop._step = step_with_signal
    torch.set_num_threads(1)
    result, _ = stream_train(stream_config(folder, workers=WORKERS), data)
    assert (result.finished, result.steps) == (False, after)


if __name__ == "__main__":
    what, folder, data, number = sys.argv[1:]
    action = {"killed": train_killed, "stopped": train_stopped}[what]
    action(Path(folder), Path(data), int(number))
    leave_processes()
