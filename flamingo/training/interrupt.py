"""SIGTERM and Ctrl-C as a wish that the loop grants at the end of its step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Context manager that notes SIGTERM and the first SIGINT instead of dying from them.

    A second SIGINT raises ``KeyboardInterrupt`` as usual. Outside the main thread, where Python
    allows no handlers, signals keep their effect.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        name = signal.Signals(number).name
        # Straight to the descriptor: Python's buffered streams must not be re-entered from here.
        os.write(2, f"\n{name}: finishing this step, then saving a checkpoint.\n".encode())
