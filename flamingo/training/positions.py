"""Where the streams are after the last step that was trained, over all processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from flamingo.data.cursor import Cursors, dropped, furthest, given
from flamingo.training.batches import StepSource


class StreamPositions:
    """The cursors of all lanes, of which each process moves its own.

    They are brought together when a checkpoint or log entry needs them: both are done by every
    process at the same time. Without streams all of it is empty, and nothing is sent.
    """

    def __init__(self, mixture: StepSource, accelerator: Accelerator) -> None:
        self._mixture, self._accelerator = mixture, accelerator
        self._all: Cursors = {}
        self._moved: Cursors = {}
        """What this process moved since the last time they were brought together."""

    def add(self, cursors: Cursors) -> None:
        """A step was trained that leaves streams at ``cursors``."""
        self._moved = furthest([self._moved, cursors])

    def _gathered(self) -> Cursors:
        moved = gather_object([self._moved]) if self._mixture.has_streams else []
        self._all, self._moved = furthest([self._all, *moved]), {}
        return self._all

    def documents(self) -> dict[str, float]:
        """``data/<source>/given`` and ``data/<source>/dropped/<reason>``: documents since the start
        of training."""
        cursors = self._gathered()
        rows = {f"data/{name}/given": float(count) for name, count in given(cursors).items()}
        return rows | {
            f"data/{name}/dropped/{reason}": float(count)
            for name, reasons in dropped(cursors).items()
            for reason, count in reasons.items()
        }

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return self._mixture.stream_state(self._gathered())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`, here and in the processes that will prepare the steps."""
        self._all, self._moved = self._mixture.resume(state), {}
