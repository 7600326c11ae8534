"""The folder that a comparison is written into: its own, never another's files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flamingo.files import write_atomically

MARKER = "comparison.json"
"""Says that a folder holds a comparison, and which files are its."""


@dataclass
class Output:
    """A folder that is new, empty, or was written by an earlier comparison."""

    folder: Path
    files: list[str] = field(default_factory=list)
    earlier: Sequence[str] = ()
    """What is removed before the first file is written."""

    @classmethod
    def claim(cls, folder: Path) -> Output:
        """Take ``folder``; what an earlier comparison wrote there goes once the first file comes.

        Raises ``ValueError`` for anything else in it. Touches nothing.
        """
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out: expected a folder, got the file {folder}")
        marker = folder / MARKER
        if marker.is_file():
            return cls(folder, earlier=_own(marker))
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(
                f"out: expected a new or empty folder, or one of an earlier comparison; {folder} "
                f"has other files and no {MARKER}"
            )
        return cls(folder)

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the comparison."""
        path = self.folder / name
        self.note([name])
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
        return path

    def note(self, names: Sequence[str]) -> None:
        """``names`` are files of the comparison (said before they are written)."""
        for name in self.earlier:
            file = self.folder / name
            if file.resolve().is_relative_to(self.folder.resolve()):
                file.unlink(missing_ok=True)
        self.earlier = ()
        self.files += names
        write_atomically(self.folder / MARKER, json.dumps({"files": self.files}, indent=1) + "\n")


def _own(marker: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads(marker.read_text())["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{marker}: expected the files of a comparison: {error}") from error
