"""metrics.jsonl after kills and resumes; wandb by a stand-in."""

import json
import sys
from types import ModuleType

import pytest

from flamingo.choices import WandbMode
from flamingo.config import TrackingConfig
from flamingo.training import tracking
from flamingo.training.tracking import MetricsFile, Tracker, check_tracking, read_metrics


def write(path, steps) -> None:
    file = MetricsFile(path, step=0)
    for step in steps:
        file.append({"step": step, "loss": 0.1 * step})
    file.close()


def test_numbers_survive_the_file_exactly(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", step=0)
    file.append({"step": 1, "loss": 0.1 + 0.2})
    file.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.1 + 0.2}]


def test_resuming_drops_entries_after_the_checkpoint_and_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3, 4])
    before = path.read_bytes().splitlines(keepends=True)
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    resumed = MetricsFile(path, step=2)
    assert path.read_bytes() == b"".join(before[:2])
    resumed.append({"step": 3, "loss": 0.5})
    resumed.close()
    assert [e["step"] for e in read_metrics(path)] == [1, 2, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_torn_last_line_that_happens_to_be_json_is_not_an_entry(tmp_path):
    (tmp_path / "m").write_text('{"step": 1}\n{"step": 2}')
    assert read_metrics(tmp_path / "m") == [{"step": 1}]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: expected a JSON object"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_entries_are_on_disk_as_soon_as_they_are_logged(tmp_path):
    file = MetricsFile(tmp_path / "m", step=0)
    file.append({"step": 1})
    assert read_metrics(tmp_path / "m") == [{"step": 1}]
    file.close()


def test_a_full_disk_names_the_file(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", step=0)
    file._file = open("/dev/full", "a")  # noqa: SIM115 (closing it fails as well)
    with pytest.raises(
        OSError, match=r"No space left .* appending to .*metrics.jsonl; its earlier"
    ):
        file.append({"step": 1})


class FakeWandb(ModuleType):
    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits, self.logged, self.finished = [], [], []

    def init(self, **arguments):
        self.inits.append(arguments)

    def log(self, metrics, step):
        self.logged.append((step, metrics))

    def finish(self, exit_code):
        self.finished.append(exit_code)


def tracker(tmp_path, step, mode=WandbMode.offline) -> Tracker:
    config = TrackingConfig(wandb=mode, project="p")
    return Tracker(tmp_path, config, name="n", settings={"lr": 1}, step=step)


def test_a_resume_continues_the_same_wandb_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda _: object())
    with tracker(tmp_path, 0) as t:
        t.log(1, {"loss": 2.0})
    with pytest.raises(RuntimeError), tracker(tmp_path, 1):
        raise RuntimeError
    first, second = (i["id"] for i in fake.inits)
    assert first == second and first
    assert fake.inits[0]["mode"] == "offline" and fake.inits[0]["resume"] == "allow"
    assert fake.logged == [(1, {"loss": 2.0})]
    assert fake.finished == [0, 1]


@pytest.mark.slow
def test_the_real_wandb_records_offline_and_continues(tmp_path):
    pytest.importorskip("wandb")
    for step in (0, 1):
        with tracker(tmp_path, step) as t:
            t.log(step + 1, {"loss": 1.0})
    recorded = {p.name.rsplit("-", 1)[1] for p in (tmp_path / "wandb").glob("offline-run-*")}
    assert recorded == {(tmp_path / "wandb_id").read_text()}


def test_disabled_tracking_does_not_import_wandb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it now fails
    with tracker(tmp_path, 0, WandbMode.disabled) as t:
        t.log(3, {"loss": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, "loss": 1.0}


def test_missing_wandb_is_said_before_anything_starts(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="tracking.wandb: expected the package wandb"):
        check_tracking(TrackingConfig(wandb=WandbMode.online))
    check_tracking(TrackingConfig())
