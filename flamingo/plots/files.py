"""Figures as files."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

DPI = 150


def figure_bytes(figure: Figure, kind: str = "png") -> bytes:
    """``figure`` as a file of ``kind``: ``png``, ``svg`` or whatever else matplotlib writes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=DPI)
    return buffer.getvalue()
