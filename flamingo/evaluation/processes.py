"""The processes of one launch: who goes first, and who waits for whom."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from accelerate import PartialState
from torch.distributed import DistError

from flamingo.backbones.precision import available_device

PATIENCE = timedelta(days=7)
"""How long a process waits for another, which may be encoding a million images. One that dies is
noticed at once, by the others or by what launched them."""


class OtherProcessEnded(Exception):
    """Another process of the launch ended while this one waited for it."""


def _alone() -> None:
    """Nobody to wait for."""


@dataclass(frozen=True)
class Processes:
    """The ``count`` processes of a launch as the one of number ``index`` sees them.

    Nothing but "I am here" ever passes between them: what they share, they share as files.
    ``barrier`` returns when every process has called it.
    """

    index: int = 0
    count: int = 1
    barrier: Callable[[], None] = _alone

    @property
    def main(self) -> bool:
        """Whether this is the process that speaks and writes what is written once."""
        return self.index == 0

    def wait(self) -> None:
        """Return when every process has come here. Raises :class:`OtherProcessEnded`."""
        self.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The others enter when the main process is through: what it fetches or caches they find.

        An error of the main process is told once, as the others never come to it.
        """
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()


ALONE = Processes()


def launched() -> Processes:
    """The processes of this launch (``accelerate launch``, ``torchrun``, Slurm's tasks), one if
    there was none.

    Each gets its own GPU as the current one. They wait for one another over the network (gloo) also
    where there are GPUs: that takes none, and one that ends is noticed at once. Any other
    error while they wait is raised as it is.
    """
    state = PartialState(cpu=True, timeout=PATIENCE)
    if state.num_processes == 1:
        return ALONE
    atexit.register(state.destroy_process_group)
    if available_device().type == "cuda":
        torch.cuda.set_device(state.local_process_index % torch.cuda.device_count())

    def barrier() -> None:
        try:
            # Not accelerate's: that asks for the GPU of the process's number, which need not be.
            torch.distributed.barrier()
        except RuntimeError as error:
            if isinstance(error, DistError) or "gloo" in str(error):  # the connection was closed
                raise OtherProcessEnded(str(error)) from error
            raise

    return Processes(state.process_index, state.num_processes, barrier)
