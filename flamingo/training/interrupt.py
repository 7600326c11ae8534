"""Signals as a wish that the loop grants at the end of its step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
"""What schedulers send ahead of taking a machine away (which of them is a setting of theirs), and
Ctrl-C."""


class StopRequest:
    """Context manager that notes the first of :data:`SIGNALS` instead of dying from it.

    A second SIGINT raises ``KeyboardInterrupt`` as usual. Outside the main thread, where Python
    allows no handlers, signals keep their effect.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def flags(self) -> list[int]:
        """1 for the signal that came, in the order of :data:`SIGNALS`."""
        return [int(self.signal == number) for number in SIGNALS]

    def settle(self, flags: Sequence[int]) -> int | None:
        """The signal to stop for, given the sums of all processes' flags; None to go on."""
        came = [int(number) for number, count in zip(SIGNALS, flags, strict=True) if count]
        if came and self.signal not in came:
            self.signal = came[0]
        return self.signal if came else None

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal = number
        name = signal.Signals(number).name
        # Straight to the descriptor: Python's buffered streams must not be re-entered from here.
        os.write(2, f"\n{name}: finishing this step, then saving a checkpoint.\n".encode())
