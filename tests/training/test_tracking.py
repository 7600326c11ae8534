"""metrics.jsonl after kills and resumes; wandb by a stand-in."""

import json
import math
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from flamingo.choices import WandbMode
from flamingo.config import TrackingConfig
from flamingo.training import tracking
from flamingo.training.tracking import (
    MetricsFile,
    Tracker,
    check_access,
    check_tracking,
    read_entries,
    read_metrics,
)


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


def test_what_json_has_no_number_for_is_valid_json_and_read_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, step=0)
    file.append({"step": 1, "a": math.inf, "b": -math.inf, "c": math.nan, "d": 1.5})
    file.close()
    text = {"step": 1, "a": "Infinity", "b": "-Infinity", "c": "NaN", "d": 1.5}
    for _ in range(2):  # also after the file is opened again and rewritten
        assert json.loads(path.read_text(), parse_constant=pytest.fail) == text
        (read,) = read_metrics(path)
        assert (read["a"], read["b"], read["d"]) == (math.inf, -math.inf, 1.5)
        assert math.isnan(read["c"])
        MetricsFile(path, step=1).close()


def test_a_file_of_bare_infinities_as_earlier_versions_wrote_it_is_read_and_mended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": Infinity}\n')
    assert read_metrics(path) == [{"step": 1, "loss": math.inf}]
    MetricsFile(path, step=1).close()
    assert path.read_text() == '{"step": 1, "loss": "Infinity"}\n'


def test_an_answer_that_reads_like_a_number_stays_text(tmp_path):
    (tmp_path / "real.jsonl").write_text('{"answer": "NaN"}\n')
    assert read_entries(tmp_path / "real.jsonl") == [{"answer": "NaN"}]


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
    """Records what it is told; with ``refusal`` it lets nobody in."""

    class errors:
        class Error(Exception):
            pass

    def __init__(self, refusal: str | None = None) -> None:
        super().__init__("wandb")
        self.inits, self.logged, self.finished, self.defined = [], [], [], []
        self.refusal = refusal

    def _ask(self) -> None:
        if self.refusal is not None:
            raise self.errors.Error(self.refusal)

    def login(self, *, verify, force):
        assert verify and force
        self._ask()

    def init(self, **arguments):
        self._ask()
        self.inits.append(arguments)

    def define_metric(self, name, step_metric=None):
        self.defined.append((name, step_metric))

    def log(self, metrics):  # with a step= of its own wandb would drop what comes again
        self.logged.append(metrics)

    def finish(self, exit_code):
        self.finished.append(exit_code)


def tracker(tmp_path, step, mode=WandbMode.offline) -> Tracker:
    config = TrackingConfig(wandb=mode, project="p")
    return Tracker(tmp_path, config, name="n", settings={"lr": 1}, step=step)


@pytest.fixture
def fake(monkeypatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda _: object())
    return fake


def test_a_resume_continues_the_same_wandb_run(tmp_path, fake):
    with tracker(tmp_path, 0) as t:
        t.log(1, {"loss": 2.0})
    with pytest.raises(RuntimeError), tracker(tmp_path, 1):
        raise RuntimeError
    first, second = (i["id"] for i in fake.inits)
    assert first == second and first
    assert fake.inits[0]["mode"] == "offline" and fake.inits[0]["resume"] == "allow"
    assert fake.logged == [{"step": 1, "loss": 2.0}]
    assert fake.finished == [0, 1]


def test_steps_that_come_again_after_a_rewind_are_logged_over_our_own_step(tmp_path, fake):
    with pytest.raises(KeyboardInterrupt), tracker(tmp_path, 0) as t:
        for step in (1, 2, 3):
            t.log(step, {"loss": 1.0})
        raise KeyboardInterrupt
    with tracker(tmp_path, 1) as t:  # the checkpoint is older
        t.log(2, {"loss": 1.0})
    assert [entry["step"] for entry in fake.logged] == [1, 2, 3, 2]
    assert fake.defined[:2] == [("step", None), ("*", "step")]
    assert [e["step"] for e in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


REFUSED = r"tracking.wandb: .*no key. .*tracking.wandb=offline .*tracking.wandb=disabled"


def test_wandb_that_lets_nobody_in_is_said_with_the_ways_out(tmp_path, fake):
    fake.refusal = "no key."
    with pytest.raises(ValueError, match=REFUSED):
        tracker(tmp_path, 0, WandbMode.online)
    with pytest.raises(ValueError, match=REFUSED):
        check_access(TrackingConfig(wandb=WandbMode.online))
    for mode in (WandbMode.offline, WandbMode.disabled):
        check_access(TrackingConfig(wandb=mode))


def records(data: bytes) -> Iterator[bytes]:
    """Of a ``.wandb`` file: LevelDB's log format, blocks of 32 KiB, behind a header of 7 bytes."""
    place, begun = 7, b""
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        begun += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield begun
            begun = b""


def history(folder: Path) -> list[dict[str, float]]:
    """The entries that an offline wandb run holds."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    found = (Record.FromString(record) for record in records(file.read_bytes()))
    items = [r.history.item for r in found if r.WhichOneof("record_type") == "history"]
    return [{i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in e} for e in items]


@pytest.mark.slow
def test_the_real_wandb_records_offline_and_continues_after_a_rewind(tmp_path, capfd):
    pytest.importorskip("wandb")
    for start, steps in ((0, (10, 20, 30)), (10, (20, 30, 40))):
        with tracker(tmp_path, start) as t:
            for step in steps:
                t.log(step, {"train/loss": 1.0})
    # Begun in the same second, the second folder has the first one's name and "-1" behind it.
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    run_id = (tmp_path / "wandb_id").read_text()
    assert len(folders) == 2
    assert all(re.fullmatch(rf"offline-run-\d+_\d+-{run_id}(-1)?", p.name) for p in folders)
    logged = [[e["step"] for e in history(folder) if "train/loss" in e] for folder in folders]
    assert logged == [[10, 20, 30], [20, 30, 40]]
    printed = capfd.readouterr()
    assert "WARNING" not in printed.err + printed.out


ASK = """
from flamingo.choices import WandbMode
from flamingo.config import TrackingConfig
from flamingo.training.tracking import check_access
try:
    check_access(TrackingConfig(wandb=WandbMode.online))
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_real_wandb_without_a_key_is_refused(tmp_path):
    """In a process of its own: an offline run in this one leaves its mode behind."""
    pytest.importorskip("wandb")
    result = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert re.search(r"tracking.wandb: .*No API key .*tracking.wandb=offline", result.stdout)


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
