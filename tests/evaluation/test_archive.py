"""Earlier evaluations: kept whole, found by their settings, whatever interrupts the moving."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flamingo.evaluation.archive import find, forget_remade, keep_earlier

FINISHED = 1_700_000_000.0


def finish(run: Path, settings: dict, page: str = "page") -> None:
    """What an evaluation of ``settings`` leaves, as if it always took no time."""
    (run / "report").mkdir(exist_ok=True)
    (run / "report" / "index.html").write_text(page)
    (run / "plans").mkdir(exist_ok=True)
    predictions = run / "predictions" / "bench" / "real.jsonl"
    predictions.parent.mkdir(parents=True, exist_ok=True)
    predictions.touch()
    cell = {"benchmark": "bench", "condition": "real", "keys": [page]}
    (run / "cells.jsonl").write_text(json.dumps(cell) + "\n")
    (run / "results.json").write_text(json.dumps({"settings": settings}))
    os.utime(run / "results.json", (FINISHED, FINISHED))


def test_each_settings_evaluation_is_found_where_it_is(tmp_path) -> None:
    for number in range(3):
        assert find(tmp_path, {"shots": number}) is None
        keep_earlier(tmp_path, {"shots": number})
        finish(tmp_path, {"shots": number}, page=f"page {number}")
    places = [find(tmp_path, {"shots": number}) for number in range(3)]
    assert places[2] == tmp_path
    assert len(set(places)) == 3, "two that were finished within a second are two"
    for number, place in enumerate(places):
        assert place is not None
        assert (place / "report" / "index.html").read_text() == f"page {number}"
        assert json.loads((place / "cells.jsonl").read_text())["keys"] == [f"page {number}"]
    assert places[0] is not None and places[0].parent == tmp_path / "evaluations"


def test_the_same_settings_stay_where_they_are(tmp_path) -> None:
    assert keep_earlier(tmp_path, {}) is None, "nothing is there yet"
    finish(tmp_path, {"shots": 1})
    assert keep_earlier(tmp_path, {"shots": 1}) is None
    assert find(tmp_path, {"shots": 1}) == tmp_path


@pytest.mark.parametrize("name", ["report/index.html", "cells.jsonl"])
def test_an_evaluation_without_one_of_its_files_is_not_finished(tmp_path, name) -> None:
    finish(tmp_path, {"shots": 1})
    (tmp_path / name).unlink()
    assert find(tmp_path, {"shots": 1}) is None


def test_an_evaluation_is_not_finished_once_predictions_that_it_counts_are_removed(
    tmp_path,
) -> None:
    finish(tmp_path, {"shots": 1})
    keep_earlier(tmp_path, {"shots": 2})
    finish(tmp_path, {"shots": 2})
    (tmp_path / "predictions" / "bench" / "real.jsonl").unlink()
    assert find(tmp_path, {"shots": 1}) is find(tmp_path, {"shots": 2}) is None


def test_killed_between_two_moves_it_goes_on(tmp_path, monkeypatch) -> None:
    finish(tmp_path, {"shots": 1})
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "results.json":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        keep_earlier(tmp_path, {"shots": 2})
    monkeypatch.undo()
    place = keep_earlier(tmp_path, {"shots": 2})
    assert place is not None
    assert find(tmp_path, {"shots": 1}) == place
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(("score", "kept"), [(0.5, False), (0.75, True)])
def test_an_evaluation_made_again_replaces_the_earlier_one_that_found_the_same(
    tmp_path: Path, score: float, kept: bool
) -> None:
    earlier = tmp_path / "evaluations" / "2026-01-01"
    earlier.mkdir(parents=True)
    for folder, seconds, own in ((tmp_path, 1.0, 0.5), (earlier, 9.0, score)):
        found = {"settings": {}, "model": [{"mean": own}], "timing": {"seconds": seconds}}
        (folder / "results.json").write_text(json.dumps(found))
    forget_remade(tmp_path, earlier)
    assert (earlier / "results.json").exists() == kept
    assert (tmp_path / "results.json").exists()
