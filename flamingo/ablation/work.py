"""Running a sweep: each run by the commands one would type for it, one at a time at each place.

A run is ``experiments/train.py`` and then ``experiments/evaluate.py``, as processes of their own:
both pass over what is finished and continue what is begun, and one that fails leaves the others
alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from flamingo.ablation.progress import evaluation_words
from flamingo.ablation.sweep import Sweep, SweepRun
from flamingo.composition import CONF

EXPERIMENTS = CONF.parent / "experiments"
STOPPING = (signal.SIGTERM, signal.SIGINT)
Place = Mapping[str, str]
"""The environment variables that give a process its device."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``reason`` says why it failed. ``stopped``: with the whole sweep."""

    run: SweepRun
    seconds: float
    log: Path
    reason: str | None = None
    stopped: bool = False


def commands(sweep: Sweep, run: SweepRun, launcher: Sequence[str] = ()) -> list[list[str]]:
    """Training and evaluation; ``launcher`` are the words that have them run elsewhere.

    How runs are evaluated is told to evaluation alone: training would write it into the
    ``config.yaml`` of those runs that are not there yet, and not of the others.
    """
    folder = run.config.directory
    told = evaluation_words(sweep.overrides)
    words = [word for word in run.words if word not in told]
    return [
        ["train.py", *words, *launcher],
        ["evaluate.py", f"run={folder}", *told, *launcher],
    ]


def places(
    gpus: int, environment: Mapping[str, str], at_once: int | None = None, cores: int = 1
) -> list[Place]:
    """A place for each of ``gpus`` that ``environment`` lets a process see; one without any.

    ``at_once`` is another number of places: they share the GPUs in turns and the ``cores`` evenly.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    devices = [{"CUDA_VISIBLE_DEVICES": name} for name in names[:gpus]] or [{}]
    if at_once is None:
        return [*devices]
    threads = {"OMP_NUM_THREADS": str(max(1, cores // at_once))}
    return [{**devices[place % len(devices)], **threads} for place in range(at_once)]


@dataclass
class Workers:
    """Runs at work, one at each of ``places``; what they print goes into the folder ``logs``."""

    sweep: Sweep
    places: Sequence[Place]
    logs: Path
    launcher: Sequence[str] = ()
    stopped: int | None = None
    """The signal that ended the sweep."""
    _live: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: Any = field(default_factory=threading.RLock)

    def run(self, runs: Sequence[SweepRun], told: Callable[[Outcome], None]) -> list[Outcome]:
        """Run all; ``told`` of each when it ends. Returns those that failed or were stopped.

        SIGTERM and Ctrl-C are passed on, as SIGTERM, to the processes at work: training saves a
        checkpoint first. What has not begun is left out. Jobs that were launched elsewhere go on.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        free: SimpleQueue[Place] = SimpleQueue()
        for place in self.places:
            free.put(place)

        def at_a_place(run: SweepRun) -> Outcome:
            place = free.get()
            try:
                return self._run(run, place)
            finally:
                free.put(place)

        failed = []
        with self._obeying(), ThreadPoolExecutor(len(self.places)) as pool:
            for future in as_completed([pool.submit(at_a_place, run) for run in runs]):
                outcome = future.result()
                if outcome.reason is not None or outcome.stopped:
                    failed.append(outcome)
                told(outcome)
        return failed

    def _run(self, run: SweepRun, place: Place) -> Outcome:
        began = time.monotonic()
        log = self.logs / f"{run.config.name}-seed={run.seed}.log"
        for script, *words in commands(self.sweep, run, self.launcher):
            status = self._process([str(EXPERIMENTS / script), *words], place, log)
            seconds = time.monotonic() - began
            if self.stopped is not None:
                return Outcome(run, seconds, log, stopped=True)
            if status:
                reason = f"{script} ended with status {status}: {last_line(log)}"
                return Outcome(run, seconds, log, reason)
        return Outcome(run, time.monotonic() - began, log)

    def _process(self, command: Sequence[str], place: Place, log: Path) -> int:
        with log.open("ab") as file:
            with self._lock:
                if self.stopped is not None:
                    return 128 + self.stopped
                file.write(f"$ {' '.join(command)}\n".encode())
                file.flush()
                process = subprocess.Popen(
                    [sys.executable, *command],
                    env={**os.environ, **place},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                )
                self._live.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._live.discard(process)

    @contextmanager
    def _obeying(self) -> Iterator[None]:
        """Signals end the sweep, where Python allows handlers: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: Any = None) -> None:
        with self._lock:
            if self.stopped is None:
                self.stopped = number
            for process in self._live:
                process.terminate()


def last_line(log: Path) -> str:
    """What a process said last, the message of its error."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
