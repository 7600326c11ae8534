"""Evaluations of a run under several settings: none is lost.

::

    <run>/results.json   report/   cells.jsonl   plans/   submissions/   the newest
    <run>/evaluations/<date>/...   each earlier one, by when it was finished

``predictions/`` are shared by all: ``cells.jsonl`` says which of them are counted. They hold the
scores and groups of whatever evaluation judged them last; so an earlier one that is asked for again
is made again from them, and stays where it found something else (of other annotations).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

KEPT = ("plans", "submissions", "report", "cells.jsonl", "results.json")
"""What belongs to one evaluation. The results are moved last: they say that all is there."""

ALWAYS = ("plans", "report/index.html", "cells.jsonl", "results.json")
"""What every evaluation writes; one without some of it is done again."""


def find(run: Path, settings: Mapping[str, Any]) -> Path | None:
    """The folder of a finished evaluation of these settings: ``run`` itself or an earlier one.

    One is not finished any more when a file of predictions that it counts was removed.
    """
    for folder in (run, *sorted((run / "evaluations").glob("*"), reverse=True)):
        whole = all((folder / name).exists() for name in ALWAYS)
        if whole and _settings(folder) == settings and _predicted(run, folder):
            return folder
    return None


def _predicted(run: Path, folder: Path) -> bool:
    """Whether all files of predictions that the evaluation in ``folder`` counts are there."""
    cells = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    files = {f"{cell['benchmark']}/{cell['condition']}.jsonl" for cell in cells}
    return all((run / "predictions" / file).exists() for file in files)


def keep_earlier(run: Path, settings: Mapping[str, Any]) -> Path | None:
    """Make room for the evaluation of ``settings``: one of others moves to ``evaluations/<date>``.

    Returns where it is now. Interrupted and called again, it goes on where it was.
    """
    found = _settings(run)
    if found is None or found == settings:
        return None
    finished = datetime.fromtimestamp((run / "results.json").stat().st_mtime)
    date = finished.strftime("%Y-%m-%dT%H-%M-%S")
    place = run / "evaluations" / date
    number = 1
    while (place / "results.json").exists():  # another one, finished within the same second
        number += 1
        place = run / "evaluations" / f"{date}-{number}"
    place.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (run / name).exists():
            (run / name).rename(place / name)
    return place


def forget_remade(run: Path, earlier: Path) -> None:
    """Remove an earlier evaluation that is the newest again, unless its results were others."""
    if _found(run) == _found(earlier):
        shutil.rmtree(earlier)


def _found(folder: Path) -> dict[str, Any]:
    """All results but how long they took."""
    return {**json.loads((folder / "results.json").read_text()), "timing": None}


def _settings(folder: Path) -> Mapping[str, Any] | None:
    results = folder / "results.json"
    return json.loads(results.read_text())["settings"] if results.exists() else None
