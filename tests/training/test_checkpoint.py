"""Checkpoints under interruption, full disks and partial copies."""

import json
import random
import shutil

import numpy as np
import pytest
import torch

from flamingo.training import checkpoint
from flamingo.training.checkpoint import (
    CheckpointError,
    complete_checkpoints,
    latest_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)


class Weights:
    """Stands for a model: its whole state is one number."""

    def __init__(self, value: int) -> None:
        self.value = value

    def save_pretrained(self, folder) -> None:
        (folder / "model.safetensors").write_text(str(self.value))


class FullDisk:
    """A model whose weights do not fit: /dev/full refuses every byte with the real error."""

    def save_pretrained(self, folder) -> None:
        (folder / "model.safetensors").write_bytes(b"half of")
        with open("/dev/full", "wb") as file:
            file.write(b"x" * 100_000)


def save(folder, step, model=None, keep=2):
    model = model or Weights(step)
    return save_checkpoint(
        folder, step=step, models=[model], state={"x": torch.ones(2)}, config_hash="h", keep=keep
    )


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_holds_weights_and_state(tmp_path):
    save(tmp_path, 7)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.config_hash) == (7, "h")
    assert (found.path / "model.safetensors").read_text() == "7"
    assert torch.equal(found.state()["x"], torch.ones(2))


def test_the_newest_are_kept_by_number_and_not_by_name(tmp_path):
    for step in (8, 9, 10, 100):
        save(tmp_path, step, keep=3)
    assert [c.step for c in complete_checkpoints(tmp_path)] == [9, 10, 100]
    assert names(tmp_path) == ["step_10", "step_100", "step_9"]


def test_no_folder_is_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest"])
def test_an_incomplete_copy_is_not_a_checkpoint(tmp_path, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2).path
    match damage:
        case "truncated":
            with (path / "training_state.pt").open("r+b") as file:
                file.truncate(10)
        case "missing":
            (path / "model.safetensors").unlink()
        case "no manifest":
            (path / "manifest.json").unlink()
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    assert save(tmp_path, 2).step == 2  # and it can be made again
    assert [c.step for c in complete_checkpoints(tmp_path)] == [1, 2]


def test_a_save_that_was_killed_leaves_the_last_good_one(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)

    def killed(*_):
        raise KeyboardInterrupt  # no handler of ours runs for a real kill either

    monkeypatch.setattr(checkpoint, "_write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, keep=1)
    assert names(tmp_path) == [".unfinished-step_2", "step_1"]
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    monkeypatch.undo()
    save(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["step_3"]


def test_the_old_checkpoint_goes_only_after_the_new_one_is_complete(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)
    seen = []
    sync = checkpoint._sync
    monkeypatch.setattr(checkpoint, "_sync", lambda f: (seen.append(names(tmp_path)), sync(f)))
    save(tmp_path, 2, keep=1)
    assert seen == [[".unfinished-step_2", "step_1"]]
    assert names(tmp_path) == ["step_2"]


def test_a_full_disk_is_named_with_what_is_intact(tmp_path):
    good = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="no space left while saving .*step_2") as raised:
        save(tmp_path, 2, FullDisk(), keep=1)
    assert f"{good.path} is intact" in str(raised.value)
    assert names(tmp_path) == ["step_1"]  # nothing half-written takes up the little space there is
    assert latest_checkpoint(tmp_path) == good


def test_words_of_a_full_disk_are_understood_without_an_error_number():
    rust = 'Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "x" }'
    assert checkpoint.is_no_space(RuntimeError(rust))
    assert not checkpoint.is_no_space(RuntimeError("code: 2, kind: NotFound"))


def test_other_failures_are_told_as_they_are(tmp_path):
    class Broken:
        def save_pretrained(self, _):
            raise PermissionError(13, "Permission denied")

    with pytest.raises(CheckpointError, match="Permission denied.*No earlier checkpoint exists"):
        save(tmp_path, 2, Broken())


def test_random_generators_continue_where_they_were(tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()

    draw()  # leaves a cached gaussian in numpy
    torch.save(random_state(), tmp_path / "state.pt")
    expected = [draw() for _ in range(3)]
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_a_moved_folder_stays_complete(tmp_path):
    save(tmp_path / "a", 4)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found = latest_checkpoint(tmp_path / "b")
    assert found is not None and found.path == tmp_path / "b" / "step_4"
    assert "/" not in "".join(json.loads((found.path / "manifest.json").read_text())["files"])
