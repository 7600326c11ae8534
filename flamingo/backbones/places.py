"""Names of backbones: local folders or names of the hub, with errors that say which was meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def named(field: str, name: str) -> Iterator[None]:
    """Load what ``name``, the value of ``field``, stands for.

    Raises ``ValueError`` for a path with nothing there, before anything is tried, and the errors of
    transformers with the field and the name in front.
    """
    is_path = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1
    if is_path and not Path(name).exists():
        raise ValueError(
            f"{field}: expected a folder or a name of the hub, found nothing at {name}"
        )
    try:
        yield
    except OSError as error:
        raise OSError(f"{field}: {name}: {error}") from error
