"""The asset cache with small wheels made here and a fake downloader: nothing touches a network."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from flamingo.backbones import assets
from flamingo.backbones.assets import Asset, cache_root, prepare, sha256_of
from flamingo.backbones.wheels import Wheel, pip_download

CONTENTS = {
    "toy/data/train/a.txt": b"alpha",
    "toy/data/b.txt": b"beta" * 1000,
    "toy/data/.DS_Store": b"clutter",
    "toy/__init__.py": b"raise RuntimeError('foreign code ran')",
    "toy-1.0.dist-info/LICENSE": b"free",
}
EXPECTED = {"data/train/a.txt": b"alpha", "data/b.txt": b"beta" * 1000, "LICENSE": b"free"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FLAMINGO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path) -> Path:
    """The wheel as it lies on the index."""
    path = tmp_path / "index" / "toy-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in CONTENTS.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def wheel(source) -> Wheel:
    return Wheel(
        package="toy",
        version="1.0",
        filename=source.name,
        sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        wheel_bytes=source.stat().st_size,
        megabytes=1,
        members=(("toy/data/", "data/"), ("toy-1.0.dist-info/LICENSE", "LICENSE")),
    )


class Downloader:
    """Copies the wheel and counts."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.calls = 0

    def __call__(self, wheel: Wheel, folder: Path) -> Path:
        self.calls += 1
        return Path(shutil.copy(self.source, folder / wheel.filename))


def no_network(wheel: Wheel, folder: Path) -> Path:
    raise AssertionError("a download was attempted")


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != assets.MARKER
    }


def _leftovers(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "assets").glob(".*") if not p.name.endswith(".lock"))


# ---------------------------------------------------------------------------- the ordinary way


def test_the_chosen_files_are_unpacked_and_nothing_else_is_left(cache, wheel, source):
    folder = prepare(wheel, fetch=Downloader(source))
    assert folder == cache / "assets" / "toy-1.0"
    assert _files(folder) == EXPECTED
    assert _leftovers(cache) == []


def test_a_finished_asset_needs_no_network_and_no_lock(cache, wheel, source, monkeypatch):
    first = prepare(wheel, fetch=Downloader(source))
    monkeypatch.setattr(assets, "FileLock", None)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert prepare(wheel, fetch=no_network) == first
    assert prepare(wheel) == first


def test_cache_root_is_the_environments_else_below_the_home_folder(monkeypatch):
    monkeypatch.setenv("FLAMINGO_CACHE", "~/elsewhere")
    assert cache_root() == Path.home() / "elsewhere"
    monkeypatch.delenv("FLAMINGO_CACHE")
    assert cache_root() == Path.home() / ".cache" / "flamingo"


def test_a_conversion_is_part_of_finishing(cache, wheel, source):
    def failing(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("interrupted")

    downloader = Downloader(source)
    with pytest.raises(RuntimeError, match="interrupted"):
        prepare(wheel, convert=failing, fetch=downloader)
    assert not (cache / "assets" / "toy-1.0").exists()
    folder = prepare(
        wheel, convert=lambda f: (f / "LICENSE").rename(f / "TERMS") and None, fetch=downloader
    )
    assert sorted(_files(folder)) == ["TERMS", "data/b.txt", "data/train/a.txt"]
    assert downloader.calls == 1


def test_every_file_is_readable_by_whom_the_marker_is(wheel, source):
    folder = prepare(
        wheel, convert=lambda f: (f / "LICENSE").chmod(0o600), fetch=Downloader(source)
    )
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert modes == {(folder / assets.MARKER).stat().st_mode & 0o777}
    assert modes != {0o600}


# ---------------------------------------------------------------------------- interruptions


def test_an_interrupted_unpacking_is_redone_without_a_second_download(
    cache, wheel, source, monkeypatch
):
    unpack = assets._unpack

    def interrupted(archive, target, wheel):
        unpack(archive, target, wheel)
        (target / "data" / "b.txt").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(assets, "_unpack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(wheel, fetch=Downloader(source))
    assert not (cache / "assets" / "toy-1.0").exists()
    monkeypatch.setattr(assets, "_unpack", unpack)
    assert _files(prepare(wheel, fetch=no_network)) == EXPECTED
    assert _leftovers(cache) == []


def test_leftovers_of_a_killed_process_are_removed(cache, wheel, source):
    """What a SIGKILL leaves: a temporary folder, a folder without marker, a damaged wheel."""
    (cache / "assets" / ".toy-1.0.tmp-99" / "download").mkdir(parents=True)
    (cache / "assets" / ".toy-1.0.tmp-99" / "download" / "part").write_bytes(b"half")
    (cache / "assets" / ".other-1.0.tmp-99").mkdir()
    (cache / "assets" / "toy-1.0").mkdir()
    (cache / "assets" / "toy-1.0" / "stale.txt").write_text("stale")
    (cache / "assets" / ".toy-1.0.whl").write_bytes(source.read_bytes()[:-1])
    downloader = Downloader(source)
    assert _files(prepare(wheel, fetch=downloader)) == EXPECTED
    assert downloader.calls == 1
    assert _leftovers(cache) == [".other-1.0.tmp-99"]  # another asset's is not ours to touch


def test_a_killed_process_is_continued_by_the_next(cache, wheel, source):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_hang_while_converting, args=(wheel, source, started))
    process.start()
    assert started.wait(60)
    process.kill()
    process.join()
    assert not (cache / "assets" / "toy-1.0").exists()
    assert _files(prepare(wheel, fetch=no_network)) == EXPECTED
    assert _leftovers(cache) == []


def _hang_while_converting(wheel, source, started) -> None:
    def hang(folder: Path) -> None:
        started.set()
        time.sleep(600)

    prepare(wheel, convert=hang, fetch=Downloader(source))


def test_two_processes_at_once_do_the_work_once(cache, wheel, source, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    log = tmp_path / "downloads.log"
    processes = [
        context.Process(target=_prepare_slowly, args=(wheel, source, log, barrier, results))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    folders = [results.get(timeout=240) for _ in processes]
    for process in processes:
        process.join()
    assert folders == [str(cache / "assets" / "toy-1.0")] * 2
    assert log.read_text() == "x"
    assert _files(Path(folders[0])) == EXPECTED


def _prepare_slowly(wheel, source, log, barrier, results) -> None:
    def slow(wheel: Wheel, folder: Path) -> Path:
        with log.open("a") as file:
            file.write("x")
        time.sleep(1)
        return Downloader(source)(wheel, folder)

    barrier.wait(240)
    results.put(str(prepare(wheel, fetch=slow)))


# ---------------------------------------------------------------------------- what goes wrong


def test_a_wrong_checksum_names_the_file_and_damages_nothing(cache, wheel, source):
    other = prepare(wheel, fetch=Downloader(source))
    newer = replace(wheel, version="1.1", sha256="0" * 64)
    with pytest.raises(ValueError) as caught:
        prepare(newer, fetch=Downloader(source))
    for part in (source.name, "expected SHA-256 " + "0" * 64, "got " + sha256_of(source)):
        assert part in str(caught.value)
    assert _files(other) == EXPECTED
    assert not (cache / "assets" / "toy-1.1").exists()
    assert _leftovers(cache) == []


def test_a_truncated_download_is_not_used(cache, wheel, source):
    def cut(wheel: Wheel, folder: Path) -> Path:
        path = folder / wheel.filename
        path.write_bytes(source.read_bytes()[:100])
        return path

    with pytest.raises(ValueError, match=r"100 bytes; expected"):
        prepare(wheel, fetch=cut)
    assert _leftovers(cache) == []
    assert _files(prepare(wheel, fetch=Downloader(source))) == EXPECTED


def test_too_little_space_is_said_before_the_download(cache, wheel):
    huge = replace(wheel, megabytes=10**12)
    with pytest.raises(OSError, match=r"no space left in .*cache/assets: toy-1\.0 needs") as caught:
        prepare(huge, fetch=no_network)
    assert caught.value.errno == errno.ENOSPC
    assert _leftovers(cache) == []


def test_space_that_runs_out_while_unpacking_names_the_folder(cache, wheel, source, monkeypatch):
    def full(reader, writer, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(assets.shutil, "copyfileobj", full)
        with pytest.raises(OSError, match=r"no space left in .*FLAMINGO_CACHE"):
            prepare(wheel, fetch=lambda w, f: _write(f / w.filename, source.read_bytes()))
    assert not (cache / "assets" / "toy-1.0").exists()
    assert _files(prepare(wheel, fetch=no_network)) == EXPECTED


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_wheel_without_the_expected_files_is_refused(cache, wheel, source):
    moved = replace(wheel, members=(("toy/images/", "images/"),))
    with pytest.raises(ValueError, match="expected 'toy/images/' inside"):
        prepare(moved, fetch=Downloader(source))
    assert not (cache / "assets" / "toy-1.0").exists()


# ---------------------------------------------------------------------------- pip


def _fake_pip(monkeypatch, tmp_path, script: str) -> None:
    """Runs ``script`` in place of ``python -m pip``; the real command's arguments follow."""
    path = tmp_path / "fake_pip.py"
    path.write_text(script)
    popen = subprocess.Popen

    def start(command, **options):
        assert command[1:3] == ["-m", "pip"]
        return popen([sys.executable, str(path), *command[3:]], **options)

    monkeypatch.setattr(subprocess, "Popen", start)


def test_pip_is_asked_for_one_wheel_without_dependencies(
    cache, wheel, source, tmp_path, monkeypatch
):
    _fake_pip(
        monkeypatch,
        tmp_path,
        f"""
import json, os, shutil, sys
target = sys.argv[sys.argv.index("--dest") + 1]
assert os.environ["TMPDIR"] == target
json.dump(sys.argv[1:], open({str(tmp_path / "arguments.json")!r}, "w"))
shutil.copy({str(source)!r}, target)
""",
    )
    assert _files(prepare(wheel)) == EXPECTED
    arguments = json.loads((tmp_path / "arguments.json").read_text())
    assert arguments[:2] == ["download", "toy==1.0"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(arguments)


def test_a_folder_that_pip_removes_while_it_is_looked_at_is_no_error(
    cache, wheel, source, tmp_path, monkeypatch
):
    _fake_pip(
        monkeypatch,
        tmp_path,
        f"""
import os, shutil, sys, time
target = sys.argv[sys.argv.index("--dest") + 1]
os.mkdir(os.path.join(target, "build-tracker"))
time.sleep(0.5)
shutil.copy({str(source)!r}, target)
""",
    )
    scandir, seen = os.scandir, []

    def gone(path):
        if os.path.basename(path) == "build-tracker":
            seen.append(path)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", gone)
        assert wheel.filename == pip_download(wheel, tmp_path).name
    assert seen


def test_a_failed_download_repeats_what_pip_said(cache, wheel, tmp_path, monkeypatch):
    _fake_pip(monkeypatch, tmp_path, "print('ERROR: no route to host'); raise SystemExit(1)")
    with pytest.raises(ConnectionError, match=r"(?s)toy-1\.0.*exit status 1.*no route to host"):
        prepare(wheel)
    assert _leftovers(cache) == []


def test_a_disk_that_pip_fills_is_reported_as_that(cache, wheel, tmp_path, monkeypatch):
    message = f"ERROR: [Errno 28] {os.strerror(errno.ENOSPC)}"
    _fake_pip(monkeypatch, tmp_path, f"print({message!r}); raise SystemExit(1)")
    with pytest.raises(OSError, match=r"no space left in .*toy-1\.0 needs about 1 MB"):
        prepare(wheel)


# ---------------------------------------------------------------------------- the real ones


def test_every_asset_is_a_pinned_wheel_of_pure_data():
    for asset in Asset:
        wheel = asset.value
        assert wheel.filename.endswith("-none-any.whl")
        assert len(bytes.fromhex(wheel.sha256)) == 32
        assert wheel.megabytes * 1e6 > wheel.wheel_bytes
        assert not any(source.endswith(".py") for source, _ in wheel.members)


@pytest.fixture
def real_cache(monkeypatch) -> None:
    monkeypatch.delenv("FLAMINGO_CACHE")


@pytest.mark.slow
def test_real_images_and_questions_are_all_there(real_cache):
    folder = assets.easy_vqa_folder()
    for split, images, questions in (("train", 4000, 38_575), ("test", 1000, 9_673)):
        assert len(list((folder / split / "images").glob("*.png"))) == images
        rows = json.loads((folder / split / "questions.json").read_text())
        assert len(rows) == questions
        assert {row[2] for row in rows} == set(range(images))
    assert len(list(assets.twemoji_folder().glob("*.png"))) == 4009
    assert (assets.twemoji_folder() / "1f600.png").exists()


@pytest.mark.slow
def test_the_real_language_model_writes_english_and_its_tokenizer_round_trips(real_cache):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = assets.language_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.config.vocab_size == len(tokenizer) == 49_152
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (30, 576)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert getattr(model.config, "quantization_config", None) is None
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(specials) == [0, 1, 2]
    assert tokenizer("<|im_start|>user\nHi<|im_end|>").input_ids[0] == 1

    text = "Line one.\n\tTabs  and  spaces: naïve café 😀 12345, can't <|im_end|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer(" red").input_ids) == 1

    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=1, do_sample=False)[0, -1:]
    assert tokenizer.decode(answer) == " Paris"
    english = "The children went to the park in the afternoon and played with their friends."
    ids = tokenizer(english, return_tensors="pt").input_ids
    with torch.no_grad():
        assert model(ids, labels=ids).loss < 3.5  # nats a token; a broken conversion gives 10
