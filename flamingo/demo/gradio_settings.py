"""What is settled before gradio is imported: that it is there, and that we alone configure it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path


def require_gradio() -> None:
    """Raise ``ValueError`` saying how to install gradio if it is missing."""
    if find_spec("gradio") is None:
        raise ValueError(
            "demo: expected the package gradio, got none installed: make install brings it, and so "
            "does pip install -e '.[demo]' (experiments/ask.py asks a run without it)"
        )


def gradio_settings(environment: Mapping[str, str], uploads: Path) -> dict[str, str]:
    """``environment`` without any setting of gradio's but ours.

    Uploads and drawn images go to ``uploads``, and nothing is reported to gradio's makers. gradio
    serves the folder of cached examples too: it is not the one in the working directory. Settings
    such as ``GRADIO_ALLOWED_PATHS`` or ``GRADIO_SHARE`` would widen what is served behind the back
    of our configuration. Proxies are not asked for what this machine serves (gradio looks whether
    its own page is there).
    """
    kept = {name: value for name, value in environment.items() if not name.startswith("GRADIO_")}
    local = {name: _with_loopback(kept.get(name, "")) for name in ("no_proxy", "NO_PROXY")}
    folders = dict.fromkeys(("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE"), str(uploads))
    return kept | local | folders | {"GRADIO_ANALYTICS_ENABLED": "False"}


def _with_loopback(hosts: str) -> str:
    listed = [host for host in hosts.split(",") if host]
    return ",".join([*listed, *(own for own in ("127.0.0.1", "localhost") if own not in listed)])
