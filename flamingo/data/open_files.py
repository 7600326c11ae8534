"""How many files streams keep open, and the system's leave to do so.

Each lane of a stream keeps its shard open between two rows. A step's rows are divided among
processes and steps among data workers, so each worker has its share of the lanes.
"""

from __future__ import annotations

import math

from flamingo.config import DataConfig

OTHERS = 512
"""Files that a process has open beside lanes: libraries, tensors that workers hand over."""


def files_of_lanes(config: DataConfig, processes: int) -> int:
    """Files that each data worker (or process, without workers) of ``processes`` keeps open."""
    lanes = sum(stream.lanes * stream.sequences for stream in config.streams.values())
    return math.ceil(lanes / (processes * max(1, config.workers)))


def allow_open_files(config: DataConfig, processes: int) -> None:
    """Let this process, and the data workers it will start, open the files of their lanes.

    The soft limit is raised as far as is needed. Raises ``ValueError`` if the system's own limit is
    below that.
    """
    try:
        import resource
    except ImportError:  # no such limit of a process there
        return
    lanes = files_of_lanes(config, processes)
    needed = lanes + OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if lanes == 0 or soft == unlimited or soft >= needed:
        return
    if hard != unlimited and hard < needed:
        raise ValueError(
            f"data: expected leave to have {needed:,} files open ({lanes:,} lanes of streams a "
            f"data worker), got {hard:,} (ulimit -Hn): set lanes=1, or more workers"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
