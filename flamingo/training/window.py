"""Running means of a run's numbers between two log entries, and its throughput."""

from __future__ import annotations

import time
from typing import Any

from flamingo.training.tracking import TIMING_PREFIX


class Window:
    """Collects numbers of steps; ``flush`` returns their means and starts anew.

    Its state goes into checkpoints, so that an entry whose steps lie on both sides of an
    interruption is the same as without one. Timings are not part of it.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._restart()

    def _restart(self) -> None:
        self._tokens = self._padded_tokens = self._images = self._steps = 0
        self._seconds = 0.0

    def add(self, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def add_work(self, *, tokens: int, padded_tokens: int, images: int, seconds: float) -> None:
        """What one step processed (over all processes), and how long it took."""
        self._tokens += tokens
        self._padded_tokens += padded_tokens
        self._images += images
        self._steps += 1
        self._seconds += seconds

    def throughput(self) -> dict[str, float]:
        seconds = max(self._seconds, 1e-9)
        return {
            f"{TIMING_PREFIX}tokens_per_second": self._tokens / seconds,
            # Real tokens of those computed. It differs with the number of processes.
            f"{TIMING_PREFIX}token_efficiency": self._tokens / max(self._padded_tokens, 1),
            f"{TIMING_PREFIX}images_per_second": self._images / seconds,
            f"{TIMING_PREFIX}step_seconds": seconds / max(self._steps, 1),
            f"{TIMING_PREFIX}unix": time.time(),
        }

    def means(self) -> dict[str, float]:
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def flush(self) -> dict[str, float]:
        result = self.means() | self.throughput()
        self._sums, self._counts = {}, {}
        self._restart()
        return result

    def state(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def restore(self, state: dict[str, Any]) -> None:
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
