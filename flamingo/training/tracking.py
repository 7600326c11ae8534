"""Where a run's numbers go: ``metrics.jsonl`` always, wandb when the config says so."""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any

from flamingo.choices import WandbMode
from flamingo.config import TrackingConfig
from flamingo.files import write_atomically

TIMING_PREFIX = "time/"
MEMORY_PREFIX = "memory/"
VARYING = (TIMING_PREFIX, MEMORY_PREFIX)
"""Metrics that differ between two equal runs; all others are the same bit for bit on CPU."""


NO_NUMBERS = ("NaN", "Infinity", "-Infinity")
"""What JSON has no numbers for is text in a metrics file: as Python and JavaScript spell it."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics file, NaN and infinities as numbers again.

    Raises as :func:`read_entries`.
    """
    return [
        {name: float(value) if value in NO_NUMBERS else value for name, value in entry.items()}
        for entry in read_entries(path)
    ]


def metrics_line(entry: dict[str, Any]) -> str:
    """An entry of a metrics file, valid JSON whatever its numbers."""
    told = {
        name: json.dumps(value) if isinstance(value, float) and not isfinite(value) else value
        for name, value in entry.items()
    }
    return json.dumps(told, allow_nan=False) + "\n"


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines that is appended to: metrics, cells, predictions.

    A torn last line (the process was killed) is left out.

    Raises ``ValueError`` naming file and line if any other line is not valid.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    # Every complete entry ends in a newline, so what stands behind the last one is torn.
    entries = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object, got {line[:80]!r}"
            ) from error
    return entries


class MetricsFile:
    """Appends entries to ``metrics.jsonl``; opening it returns to the state at ``step``.

    Entries after ``step`` (of steps that were lost with an interruption and will be done again)
    and a torn last line are dropped by an atomic rewrite, so that the file ends up the same as
    that of an uninterrupted run.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        entries = [e for e in read_metrics(path) if e["step"] <= step]
        write_atomically(path, "".join(metrics_line(e) for e in entries))
        self._file = path.open("a")

    def append(self, entry: dict[str, Any]) -> None:
        """One write a line, handed to the system at once: a kill tears the last line at most.

        Raises ``OSError`` naming the file when it cannot be written; earlier lines are intact.
        """
        try:
            self._file.write(metrics_line(entry))
            self._file.flush()
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror} while appending to {self.path}; "
                "its earlier entries and all checkpoints are intact",
            ) from error

    def sync(self) -> None:
        """Force all entries to disk (before a checkpoint that relies on them)."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # only what an append could not write, and has told, is left
            self._file.close()


def check_tracking(config: TrackingConfig) -> None:
    """Raise ``ValueError`` now, and not after the weights are loaded, if wandb is missing."""
    if config.wandb is not WandbMode.disabled and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"tracking.wandb: expected the package wandb for mode {config.wandb.value}, but it is "
            "not installed; pip install -e '.[track]', or set tracking.wandb=disabled"
        )


def check_access(config: TrackingConfig) -> None:
    """Raise ``ValueError`` now, and not after data and weights are prepared, if wandb cannot be
    reached or has no key. Asks for a key where there is a terminal. For the main process."""
    if config.wandb is WandbMode.online:
        import wandb  # an optional dependency, and slow to import

        with _refused(wandb):
            wandb.login(verify=True, force=True)  # not to be talked into offline


@contextmanager
def _refused(wandb: ModuleType) -> Iterator[None]:
    try:
        yield
    except wandb.errors.Error as error:
        raise ValueError(
            f"tracking.wandb: expected access to Weights & Biases, got {type(error).__name__}: "
            f"{str(error).strip()} Log in (wandb login, or WANDB_API_KEY), or set "
            "tracking.wandb=offline (kept on disk, for wandb sync) or tracking.wandb=disabled"
        ) from error


class Tracker:
    """``metrics.jsonl`` and, by config, one wandb run that a resume continues (main process only).

    The wandb run's id is kept in ``wandb_id`` in the run's folder. Its charts are drawn over our
    own ``step``: wandb refuses entries of an earlier step than its last one, and a run that went on
    from a checkpoint logs the steps after it a second time. Both stay in wandb's history, the later
    ones behind; ``metrics.jsonl`` has each step once. Use as a context manager.
    """

    def __init__(
        self,
        folder: Path,
        config: TrackingConfig,
        *,
        name: str,
        settings: dict[str, Any],
        step: int,
    ) -> None:
        check_tracking(config)
        self._metrics = MetricsFile(folder / "metrics.jsonl", step)
        self._wandb: ModuleType | None = None
        if config.wandb is not WandbMode.disabled:
            self._wandb = _start_wandb(folder, config, name, settings)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        entry = {"step": step, **metrics}
        self._metrics.append(entry)
        if self._wandb is not None:
            self._wandb.log(entry)

    def sync(self) -> None:
        self._metrics.sync()

    def close(self, failed: bool = False) -> None:
        self._metrics.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)


def _start_wandb(
    folder: Path, config: TrackingConfig, name: str, settings: dict[str, Any]
) -> ModuleType:
    import wandb  # an optional dependency, and slow to import

    id_file = folder / "wandb_id"
    if not id_file.exists():
        write_atomically(id_file, uuid.uuid4().hex[:8])
    with _refused(wandb):
        wandb.init(
            id=id_file.read_text().strip(),
            resume="allow",
            project=config.project,
            name=name,
            dir=str(folder),
            mode=config.wandb.value,
            config=settings,
        )
    wandb.define_metric("step")
    wandb.define_metric("*", step_metric="step")
    return wandb
