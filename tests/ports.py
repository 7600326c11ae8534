"""Ports for servers that tests start."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of this machine that nobody else is given meanwhile.

    It stays bound, without listening: on Linux a server that is told the port, and sets
    ``SO_REUSEADDR`` as torch's and gradio's do, can listen on it nevertheless. Elsewhere it could
    not, and the port is only one that was free.
    """
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(("127.0.0.1", 0))
        port = own.getsockname()[1]
        if sys.platform != "linux":
            own.close()
        yield port
