"""The peers' code, read from pinned wheels of the package index; nothing is installed.

Only the modules that are timed are taken out of the wheels, and none of their dependencies: the
package ``open_flamingo`` imports open_clip, webdataset and others as soon as it is named, so its
``src`` stands here under a name of its own. Both peers need ``einops-exts``, three functions.
"""

from __future__ import annotations

import importlib
import sys
from enum import Enum
from types import ModuleType

from flamingo.backbones.assets import prepare
from flamingo.backbones.wheels import Wheel


class Package(Enum):
    """Wheels of the package index, of the versions that the field's numbers were made with."""

    open_flamingo = Wheel(
        package="open-flamingo",
        version="2.0.1",
        filename="open_flamingo-2.0.1-py3-none-any.whl",
        sha256="df55893ef74a0691f7ce54592c1ca155a8e246160e2a658086031bf6b5eddbc8",
        wheel_bytes=67_205,
        megabytes=1,
        members=(
            ("open_flamingo/src/", "open_flamingo_src/"),
            ("open_flamingo-2.0.1.dist-info/LICENSE", "LICENSE"),
        ),
    )
    """OpenFlamingo (MIT), by its authors."""
    flamingo_pytorch = Wheel(
        package="flamingo-pytorch",
        version="0.1.2",
        filename="flamingo_pytorch-0.1.2-py3-none-any.whl",
        sha256="b4f4b2ff58671419312f7358b215633557737eece75dbeb6847ca1c4f36b6ed5",
        wheel_bytes=7_836,
        megabytes=1,
        members=(
            ("flamingo_pytorch/", "flamingo_pytorch/"),
            ("flamingo_pytorch-0.1.2.dist-info/LICENSE", "LICENSE"),
        ),
    )
    """Resampler and gated cross-attention by Phil Wang (MIT)."""
    einops_exts = Wheel(
        package="einops-exts",
        version="0.0.4",
        filename="einops_exts-0.0.4-py3-none-any.whl",
        sha256="6d310a4c858e459ebff8288580f90255d354cfa3bde22a53b59baae64b48cb95",
        wheel_bytes=3_925,
        megabytes=1,
        members=(
            ("einops_exts/", "einops_exts/"),
            ("einops_exts-0.0.4.dist-info/LICENSE", "LICENSE"),
        ),
    )
    """What both import besides torch, transformers and einops (MIT)."""


def peer_module(name: str, *packages: Package) -> ModuleType:
    """Import ``name`` with ``packages`` on the path for as long as that takes.

    Raises what :func:`flamingo.backbones.assets.prepare` raises, and ``ImportError`` for a peer
    that does not import with the installed libraries.
    """
    folders = [str(prepare(package.value)) for package in packages]
    sys.path[:0] = folders
    try:
        return importlib.import_module(name)
    finally:
        for folder in folders:
            sys.path.remove(folder)
