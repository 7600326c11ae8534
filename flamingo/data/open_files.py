"""How many files streams keep open, and the system's leave to do so.

Each lane of a stream keeps its shard open between two rows. A step's rows are divided among
processes and steps among data workers, so each worker has its share of the lanes. A tensor on its
way from a worker to its process is a file as well, open in both.
"""

from __future__ import annotations

import math

from flamingo.choices import ClipStorage, Mixing
from flamingo.config import DataConfig, RunConfig
from flamingo.source_config import AnnotatedSourceConfig, ClipsSourceConfig, StreamSourceConfig

OTHERS = 512
"""Files that a process has open beside these: libraries, sockets, what is being written."""
_TENSORS = 6
"""Of a micro-batch, at most."""
AHEAD = 1
"""Steps that each data worker prepares ahead. One may be a gigabyte of images, and lies in /dev/shm
until it is taken."""


def files_of_lanes(config: DataConfig, processes: int) -> int:
    """Files that each data worker (or process, without workers) of ``processes`` keeps open for the
    lanes that are trained on, at most."""
    turns = len(config.sources) if config.mixing is Mixing.round_robin else 1
    workers = max(1, config.workers)
    # A worker has every w-th step, and in turn one source: some of them it never meets.
    apart = math.gcd(workers, turns)
    met = [0] * apart
    for turn, source in enumerate(config.sources):
        if isinstance(source, StreamSourceConfig) and _keeps_files(source):
            groups = source.lanes // math.gcd(source.lanes, workers // apart)
            met[turn % apart] += math.ceil(source.sequences / processes) * groups
    return max(met)


def files_of_process(config: RunConfig, processes: int) -> int:
    """Files that the lanes and tensors of training and validation keep open in one process of
    ``processes``, or in a data worker of it if that has more."""
    data = config.data
    unseen = 0  # one lane a row, read by the process itself
    if config.training.eval_every:
        streams = (s for s in data.streams.values() if s.has_unseen and _keeps_files(s))
        unseen = sum(math.ceil(stream.sequences / processes) for stream in streams)
    lanes = files_of_lanes(data, processes)
    if data.workers == 0:
        return lanes + unseen
    step = _tensors_of_step(config, processes)
    # A process may have to wait for one worker with all that the others prepared.
    return max(lanes + AHEAD * step, unseen + (AHEAD * data.workers + 1) * step)


def _tensors_of_step(config: RunConfig, processes: int) -> int:
    settings = config.training
    rows = math.ceil(sum(source.sequences for source in config.data.sources) / processes)
    parts = settings.micro_batches
    if settings.micro_batch_tokens is not None:
        longest = settings.packing or config.data.max_tokens
        parts = math.ceil(rows / (settings.micro_batch_tokens // longest))
    clips_apart = config.data.clips is not None
    return _TENSORS * min(rows, parts + clips_apart) + 1


def _keeps_files(stream: StreamSourceConfig) -> bool:
    """Not those whose records are in memory, or files of their own."""
    in_folders = isinstance(stream, ClipsSourceConfig) and stream.storage is ClipStorage.folders
    return not isinstance(stream, AnnotatedSourceConfig) and not in_folders


def allow_open_files(config: RunConfig, processes: int) -> None:
    """Let this process, and the data workers it will start, open the files of their lanes.

    The soft limit is raised as far as is needed. Raises ``ValueError`` if the system's own limit is
    below that.
    """
    try:
        import resource
    except ImportError:  # no such limit of a process there
        return
    files = files_of_process(config, processes)
    needed = files + OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if files == 0 or soft == unlimited or soft >= needed:
        return
    if hard != unlimited and hard < needed:
        raise ValueError(
            f"data: expected leave to have {needed:,} files open ({files:,} of them lanes of "
            f"streams, and tensors from data workers), got {hard:,} (ulimit -Hn): set lanes=1, "
            "fewer micro-batches, or a number of workers that divides lanes"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
