"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

UNFINISHED = ".unfinished-"
"""Before the name of a folder that is being written, and takes its own name when it is complete."""


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` at once: a reader sees the old or the new, never a part.

    Raises ``OSError`` naming the file when it cannot be written; the old one is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno, f"{error.strerror} while writing {path}; what it held before is intact"
        ) from error
