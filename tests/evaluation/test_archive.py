"""Earlier evaluations: kept whole, found by their settings, whatever interrupts the moving."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flamingo.evaluation.archive import bring_back, find, keep_earlier

FINISHED = 1_700_000_000.0


def finish(run: Path, settings: dict, page: str = "page") -> None:
    """What an evaluation of ``settings`` leaves, as if it always took no time."""
    (run / "report").mkdir(exist_ok=True)
    (run / "report" / "index.html").write_text(page)
    (run / "plans").mkdir(exist_ok=True)
    (run / "cells.jsonl").write_text(f"cells of {page}")
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
        assert (place / "cells.jsonl").read_text() == f"cells of page {number}"
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


def test_an_earlier_evaluation_is_brought_back_whole_and_the_newest_takes_its_turn(tmp_path):
    finish(tmp_path, {"shots": 1}, page="first")
    keep_earlier(tmp_path, {"shots": 2})
    finish(tmp_path, {"shots": 2}, page="second")
    first = find(tmp_path, {"shots": 1})
    assert first is not None
    bring_back(tmp_path, first)
    assert find(tmp_path, {"shots": 1}) == tmp_path
    assert (tmp_path / "report" / "index.html").read_text() == "first"
    (second,) = (tmp_path / "evaluations").iterdir()
    assert find(tmp_path, {"shots": 2}) == second
    assert (second / "report" / "index.html").read_text() == "second"


def test_what_an_unfinished_evaluation_left_makes_room_for_one_that_is_brought_back(tmp_path):
    finish(tmp_path, {"shots": 1}, page="first")
    first = keep_earlier(tmp_path, {"shots": 2})
    assert first is not None
    finish(tmp_path, {"shots": 2}, page="half")
    (tmp_path / "plans" / "half.jsonl").touch()
    (tmp_path / "results.json").unlink()
    bring_back(tmp_path, first)
    assert (tmp_path / "report" / "index.html").read_text() == "first"
    assert not list((tmp_path / "plans").iterdir())
