"""Where a result comes from: code, packages and machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch


def circumstances() -> dict[str, Any]:
    """Code, packages and machine as they are now."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "git": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {
            d.name: d.version
            for d in sorted(importlib.metadata.distributions(), key=lambda d: d.name.lower())
        },
    }


def git_state() -> dict[str, Any]:
    """Commit of the source tree and whether it has changes; both None outside of git."""
    status = _git("status", "--porcelain")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def uncommitted_changes() -> str:
    """What ``git apply`` makes of the commit to have this source tree; without files that git does
    not know. "" where there is none."""
    changes = _git("diff", "HEAD")
    return f"{changes}\n" if changes else ""


def _git(*arguments: str) -> str | None:
    """What git says about this source tree, or None."""
    root = Path(__file__).parents[1]
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.decode(errors="replace").strip()
