"""What a process learns from whoever launched it: its place among others, and signals.

``accelerate launch`` and ``torchrun`` tell a process its place in ``RANK`` and its like. Slurm's
``srun`` and submitit have variables of their own, which are translated here.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Mapping

SUBMITIT = "SUBMITIT_EXECUTOR"
"""Set by submitit in its jobs."""
FIRST_PORT, PORTS = 20_000, 20_000


def process_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What torch's ``env://`` wants to know, from the variables of ``srun`` or submitit.

    Empty for a process alone, and where ``RANK`` is set already (a launcher inside the job's task).
    Of Slurm it is the step's variables that count: those of the job stand in the batch script too,
    which is no task.
    """
    if "RANK" in environment:
        return {}
    if "SLURM_STEP_NUM_TASKS" in environment:
        nodes = int(environment["SLURM_STEP_NUM_NODES"])
        world, rank = environment["SLURM_STEP_NUM_TASKS"], environment["SLURM_PROCID"]
        local = environment["SLURM_LOCALID"]
        host, job = first_host(environment["SLURM_STEP_NODELIST"]), environment["SLURM_JOB_ID"]
    elif "SUBMITIT_LOCAL_NTASKS" in environment:
        nodes, host = 1, "127.0.0.1"
        world, rank = environment["SUBMITIT_LOCAL_NTASKS"], environment["SUBMITIT_LOCAL_GLOBALID"]
        local, job = environment["SUBMITIT_LOCAL_LOCALID"], environment["SUBMITIT_LOCAL_JOB_ID"]
    else:
        return {}
    if int(world) == 1:
        return {}
    return {
        "RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_RANK": local,
        "LOCAL_WORLD_SIZE": str(int(world) // nodes),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(FIRST_PORT + int(job) % PORTS),
    }


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: ``gpu01`` of ``gpu[01-03,07],cpu2``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise ValueError(f"SLURM_STEP_NODELIST: expected a list of hosts, got {nodes!r}")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def join_processes() -> None:
    """Put :func:`process_environment` in place, before accelerate looks for it."""
    os.environ.update(process_environment(os.environ))


def in_launched_job() -> bool:
    """Whether this process is a job of submitit's."""
    return SUBMITIT in os.environ


def launcher_errors() -> tuple[type[Exception], ...]:
    """What submitit raises for a job that failed or could not be submitted; empty without it."""
    try:
        from submitit.core.utils import FailedSubmissionError, UncompletedJobError
    except ImportError:
        return ()
    return FailedSubmissionError, UncompletedJobError


def circumstances_of_launch(environment: Mapping[str, str]) -> dict[str, str]:
    """Host, and what launched this process, for the provenance of a run."""
    launcher = "accelerate" if "ACCELERATE_MIXED_PRECISION" in environment else None
    if "TORCHELASTIC_RUN_ID" in environment and launcher is None:
        launcher = "torchrun"
    if SUBMITIT in environment:
        launcher = f"submitit, {environment[SUBMITIT]}"
    elif "SLURM_STEP_NUM_TASKS" in environment and launcher is None:
        launcher = "srun"
    known = {
        "host": socket.gethostname(),
        "launcher": launcher,
        "slurm_job": environment.get("SLURM_JOB_ID"),
        "slurm_array_job": environment.get("SLURM_ARRAY_JOB_ID"),
        "slurm_array_task": environment.get("SLURM_ARRAY_TASK_ID"),
        "slurm_restarts": environment.get("SLURM_RESTART_COUNT"),
    }
    return {name: value for name, value in known.items() if value is not None}


def hand_over(number: int) -> None:
    """Give a signal that training obeyed, its checkpoint saved, to the launcher that sent it.

    submitit's own handler has the job queued again and ends the process, if it is the signal of a
    preemption (``SUBMITIT_PREEMPT_SIGNAL``, default ``USR2``) and this the job's first process; any
    other signal it passes over, and so does this function outside of its jobs.
    """
    if in_launched_job() and callable(signal.getsignal(number)):
        signal.raise_signal(number)
