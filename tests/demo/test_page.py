"""The page in a real browser, and what its server gives to those who ask it for more."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flamingo.asking import open_respondent
from flamingo.backbones.seen import seen_image
from flamingo.demo.answering import Shown, answer
from flamingo.demo.form import Limits
from flamingo.plots.attention import attention_scale, in_even_spreads, overlay
from flamingo.runs import load_run
from flamingo.testing import draw
from tests.ports import reserved_port
from tests.tiny_world import save_untrained_run, save_world

pytestmark = pytest.mark.slow

gradio = pytest.importorskip("gradio", reason="needs gradio: make install")
ROOT = Path(__file__).resolve().parents[2]
FETCHING = (
    "gradio.processing_utils.async_ssrf_protected_download",
    "gradio.routes.secure_url_stream_response",
)
QUESTION = "what colour is it?"
SECONDS = 60_000  # in milliseconds, as playwright counts


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_world(tmp_path_factory.mktemp("world"))
    draw("red", "circle", 0).save(folder / "red.png")
    draw("green", "square", 1).save(folder / "green.png")
    save_untrained_run(folder, "tiny")
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    return world / "runs" / "tiny" / "seed=0"


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "experiments" / "demo.py"), *arguments]


def environment(world: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ours = {"FLAMINGO_CACHE": str(world / "cache"), "PYTHONPATH": path, "TMPDIR": str(world)}
    return os.environ | ours | {"CUDA_VISIBLE_DEVICES": "", "GRADIO_ALLOWED_PATHS": "/"}


@contextmanager
def served(world: Path, *arguments: str) -> Iterator[str]:
    with reserved_port() as port:
        server = subprocess.Popen(
            command(*arguments, f"port={port}"),
            env=environment(world),
            cwd=world,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is ignored by what a shell starts in the background, tests and their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert server.stdout is not None
        said = server.stdout.readline()
    found = re.search(r"Open (http://[\d.]+:\d+)", said)
    assert found, f"{said!r}, status {server.poll()}"
    try:
        yield found[1]
    finally:
        server.send_signal(signal.SIGINT)
        status = server.wait(timeout=120)
    assert status == 0


@pytest.fixture(scope="module")
def url(world: Path, run: Path) -> Iterator[str]:
    limits = ("limits.demonstrations=2", "limits.upload_megabytes=1")
    with served(world, f"run={run}", *limits, "alternatives=3", "max_new_tokens=3") as found:
        assert list(world.glob("flamingo-demo-*")), "uploads go to a folder of their own"
        yield found
    assert not list(world.glob("flamingo-demo-*")), "which goes with the server"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make install")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # Without a sandbox of its own: chromium refuses to start as root with one.
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, url: str):
    opened = browser.new_page(viewport={"width": 1280, "height": 1000})
    opened.set_default_timeout(SECONDS)
    opened.requested = []
    opened.on("request", lambda request: opened.requested.append(request.url))
    opened.goto(url)
    opened.wait_for_selector("#ask")
    yield opened
    opened.close()


def upload(page, place: str, path: Path) -> None:
    page.set_input_files(f"{place} input[type=file]", str(path))
    page.wait_for_selector(f"{place} img")


def answered(page) -> str:
    page.locator("#ask").click()
    page.wait_for_selector("#attention img")
    return page.locator("#answer textarea, #answer input").first.input_value()


def pictures(page) -> list[np.ndarray]:
    """What is shown of where it looked, in its order."""
    sources = [own.get_attribute("src") for own in page.locator("#attention img").all()]
    return [
        np.asarray(Image.open(io.BytesIO(page.request.get(own).body())).convert("RGB"), float)
        for own in sources
    ]


def test_it_is_filled_in_and_answers_as_the_model_does(page, url, world, run) -> None:
    upload(page, "#demonstration-1", world / "red.png")
    page.wait_for_selector("#demonstration-2")
    page.locator("#demonstration-1").get_by_label("Question").fill(QUESTION)
    page.locator("#demonstration-1").get_by_label("Answer").fill("red")
    upload(page, "#query", world / "green.png")
    page.get_by_label("Question about it").fill(QUESTION)
    page.get_by_label("Candidates").fill("red, green, blue")
    said = answered(page)
    respondent = open_respondent(load_run(run))
    expected = answer(
        respondent,
        [Shown(draw("red", "circle", 0), QUESTION, "red")],
        Shown(draw("green", "square", 1), QUESTION),
        candidates=("red", "green", "blue"),
    )
    assert said == expected.text
    shown = page.locator("#alternatives").inner_text()
    for own in expected.alternatives:
        assert re.search(rf"{own.text}\s*{round(100 * own.probability)}%", shown), shown
    layers = in_even_spreads(expected.attention.numpy())
    asked = seen_image(respondent.encoder, draw("green", "square", 1))
    for own, heat in zip(pictures(page), [layers.mean(axis=0), *layers], strict=True):
        drawn = np.asarray(overlay(asked, heat, attention_scale([heat]), own.shape[0]), float)
        assert np.abs(own - drawn).max() <= 8, "over the image asked about; 8: what rounding does"
    if folder := os.environ.get("FLAMINGO_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/demo.png", full_page=True)
    strangers = [own for own in page.requested if not own.startswith((url, "data:", "blob:"))]
    assert strangers == [], "nothing is asked of other machines"


def test_an_open_question_has_alternatives(page, world) -> None:
    upload(page, "#query", world / "green.png")
    page.get_by_label("Question about it").fill(QUESTION)
    assert answered(page)
    assert 1 <= page.locator("#alternatives").inner_text().count("%") <= 4  # with the answer


def test_what_is_missing_is_said_on_the_page_as_text(page, world) -> None:
    upload(page, "#query", world / "green.png")
    page.get_by_label("Question about it").fill("what is <image>?")
    page.locator("#ask").click()
    page.get_by_text("got '<image>' in 'what is <image>?'").first.wait_for()
    page.get_by_label("Question about it").fill("")
    page.locator("#ask").click()
    page.get_by_text("question: expected 1 to 500 characters, got none").first.wait_for()


def test_an_upload_that_is_no_image_gets_no_answer(page, world) -> None:
    (world / "script.png").write_text("<svg onload='alert(1)'/>")
    page.set_input_files("#query input[type=file]", str(world / "script.png"))
    page.get_by_label("Question about it").fill(QUESTION)
    page.locator("#ask").click()
    page.get_by_text("Error").first.wait_for()
    assert page.locator("#attention img").count() == 0


# ---------------------------------------------------------------------------- the server


def status(url: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request) as got:
            return got.status, got.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def form(content: bytes) -> tuple[bytes, dict[str, str]]:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return head + content + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def test_no_file_of_the_machine_is_served(url: str, world: Path, run: Path) -> None:
    example = world / ".gradio" / "cached_examples" / "log.csv"  # gradio's, of another page
    example.parent.mkdir(parents=True)
    example.write_text("a,b")
    ours = (str(run / "config.yaml"), str(example))
    for path in ("/etc/passwd", *ours, "../../../etc/passwd", "file:///etc"):
        assert status(f"{url}/gradio_api/file={path}")[0] in (403, 404), path


def test_an_address_in_place_of_a_file_is_not_fetched(url: str) -> None:
    for scheme in ("http", "https"):
        code, said = status(f"{url}/gradio_api/file={scheme}://93.184.216.34/big.bin")
        assert code == 403 and b"expected an upload, got an address" in said, (code, said)


@pytest.mark.parametrize("name", FETCHING)
def test_a_gradio_that_fetches_by_another_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from flamingo.demo.page import serve

    for own in FETCHING:
        monkeypatch.setattr(own, None)  # they are as they were once the test is over
    monkeypatch.delattr(name)
    with pytest.raises(ValueError, match=f"expected {name}, to replace it, got none"):
        serve(gradio.Blocks(), host="127.0.0.1", port=1, limits=Limits())


def test_what_the_page_does_not_ask_for_is_not_served(url: str) -> None:
    data, headers = form(b"no video")
    posted = data.replace(b'"files"', b'"video"')
    assert status(f"{url}/gradio_api/process_recording", posted, **headers)[0] == 404
    for path in (
        "deep_link?session_hash=own0",
        "file/http://93.184.216.34/",
        "openapi.json",
        "proxy=https://a.hf.space/",
        "queue/status",
        "user",
    ):
        assert status(f"{url}/gradio_api/{path}")[0] == 404, path
    assert status(f"{url}/monitoring")[0] == 404


def test_an_upload_above_the_limit_is_refused(url: str) -> None:
    data, headers = form(bytes(1_100_000))
    assert status(f"{url}/gradio_api/upload", data, **headers)[0] == 413
    data, headers = form(bytes(1000))
    assert status(f"{url}/gradio_api/upload", data, **headers)[0] == 200


def test_an_address_in_place_of_an_upload_is_not_fetched(url: str, world: Path) -> None:
    (uploads,) = world.glob("flamingo-demo-*")
    before = {*uploads.rglob("*")}
    place = {"path": "http://93.184.216.34/big.bin", "meta": {"_type": "gradio.FileData"}}
    listed = json.loads(status(f"{url}/config")[1])["dependencies"]
    asking = max(listed, key=lambda own: len(own["inputs"]))
    for number in range(len(asking["inputs"])):  # gradio looks for files in texts too
        filled: list[Any] = [None] * len(asking["inputs"])
        filled[number] = place
        asked = {"fn_index": asking["id"], "data": filled, "session_hash": f"own{number}"}
        body = json.dumps(asked).encode()
        join = f"{url}/gradio_api/queue/join"
        assert status(join, body, **{"Content-Type": "application/json"})[0] == 200
        said = status(f"{url}/gradio_api/queue/data?session_hash=own{number}")[1].decode()
        assert "image: expected an upload, got an address" in said
    assert {*uploads.rglob("*")} == before


def test_programs_find_no_endpoint(url: str) -> None:
    code, listed = status(f"{url}/gradio_api/info")
    assert (code, listed) == (200, b'{"named_endpoints":{},"unnamed_endpoints":{}}')
    assert status(f"{url}/docs")[0] == 404
    assert status(f"{url}/gradio_api/mcp/sse")[0] == 404


def listening(port: int) -> list[str]:
    """The addresses, as in /proc (hexadecimal, low byte first), that are served at ``port``."""
    tables = [own for own in map(Path, ("/proc/net/tcp", "/proc/net/tcp6")) if own.exists()]
    if not tables:
        pytest.skip("needs /proc/net/tcp")
    rows = [line.split() for own in tables for line in own.read_text().splitlines()[1:]]
    served = (row[1].split(":") for row in rows if row[3] == "0A")
    return [address for address, own in served if int(own, 16) == port]


def test_only_this_machine_reaches_it(url: str) -> None:
    assert listening(int(url.rpartition(":")[2])) == ["0100007F"], "127.0.0.1"


def test_it_is_served_where_it_is_told_to_and_nowhere_else(world: Path, run: Path) -> None:
    if not Path("/proc/net/tcp").exists():
        pytest.skip("needs /proc/net/tcp, and Linux's further loopback addresses")
    with served(world, f"run={run}", "host=127.0.0.2") as found:
        assert found.startswith("http://127.0.0.2:")
        assert listening(int(found.rpartition(":")[2])) == ["0200007F"], "127.0.0.2"


# ---------------------------------------------------------------------------- the command


def start(world: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(world), cwd=world, capture_output=True, text=True
    )


def test_a_port_that_is_taken_is_named(world: Path, run: Path, url: str) -> None:
    done = start(world, f"run={run}", f"port={url.rpartition(':')[2]}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: host, port: expected an address"), done
    assert "Traceback" not in done.stderr
