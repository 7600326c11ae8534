"""Running means of a run's numbers between two log entries."""

from __future__ import annotations

from typing import Any


class Window:
    """Collects numbers of steps; ``flush`` returns their means and starts anew.

    Its state goes into checkpoints, so that an entry whose steps lie on both sides of an
    interruption is the same as without one.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def flush(self) -> dict[str, float]:
        result = self.means()
        self._sums, self._counts = {}, {}
        return result

    def state(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def restore(self, state: dict[str, Any]) -> None:
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
