from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from threading import Semaphore
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from flamingo.data import feature_file
from flamingo.data.feature_file import FeatureFile
from flamingo.data.features import EncodingLoader, FeatureStore, PixelLoader, content_hash
from flamingo.images import open_image
from flamingo.testing import synthetic_images, tiny_vision_encoder
from flamingo.types import ImageRef, Media

ROW_BYTES = 16 * 24 * 2
"""Of an image's features by the tiny encoder."""


class Counting:
    """A tiny encoder that counts the images it encodes, and stops at batch number ``stop_at``."""

    def __init__(self, scale: float = 1.0) -> None:
        self.inner, self.scale = tiny_vision_encoder(), scale
        self.dim, self.patches = self.inner.dim, self.inner.patches
        self.fingerprint, self.transform = self.inner.fingerprint, self.inner.transform
        self.parameters = self.inner.parameters
        self.images = self.batches = 0
        self.stop_at: int | None = None

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.batches == self.stop_at:
            raise KeyboardInterrupt
        self.batches += 1
        self.images += len(pixel_values)
        return self.inner(pixel_values) * self.scale


def _media(count: int) -> list[Media]:
    return [Media((image,)) for image in synthetic_images(count)]


def test_the_store_gives_the_numbers_of_encoding_on_the_fly(tmp_path: Path) -> None:
    encoder = tiny_vision_encoder()
    store = FeatureStore.build(synthetic_images(10), encoder, tmp_path, batch_size=4)
    media = [_media(10)[i] for i in (3, 0, 3, 9)]
    features = store.load(media)
    assert features.shape == (4, 1, 16, 24) and features.dtype == torch.float16
    torch.testing.assert_close(features, EncodingLoader(encoder)(media), rtol=0, atol=0)
    pixels = torch.stack([encoder.transform(medium.frames[0].open()) for medium in media])
    assert torch.equal(features[:, 0], encoder(pixels).half())
    torch.testing.assert_close(PixelLoader(encoder.transform)(media)[:, 0], pixels)
    assert torch.equal(store(media), features)


def test_clips_keep_their_frames_in_order(tmp_path: Path) -> None:
    images = synthetic_images(4)
    store = FeatureStore.build(images, tiny_vision_encoder(), tmp_path)
    clips = [Media((images[2], images[0])), Media((images[1], images[3]))]
    singles = store.load([Media((images[i],)) for i in (2, 0, 1, 3)])
    assert torch.equal(store.load(clips), singles.reshape(2, 2, 16, 24))
    on_the_fly = EncodingLoader(tiny_vision_encoder())(clips)
    assert torch.equal(store.load(clips), on_the_fly)


def test_only_missing_contents_are_encoded(tmp_path: Path) -> None:
    encoder = Counting()
    FeatureStore.build(synthetic_images(6), encoder, tmp_path)
    assert encoder.images == 6
    images = synthetic_images(9)
    renamed = [ImageRef(f"copy/{image.key}", image.open) for image in images]
    store = FeatureStore.build([*images, *renamed], encoder, tmp_path, batch_size=2)
    assert encoder.images == 9
    assert len(store.rows) == 18 and len(set(store.rows.values())) == 9
    FeatureStore.build(images, encoder, tmp_path)
    assert encoder.images == 9


def test_another_encoder_has_its_own_features(tmp_path: Path) -> None:
    first = FeatureStore.build(synthetic_images(3), tiny_vision_encoder(seed=0), tmp_path)
    second = FeatureStore.build(synthetic_images(3), tiny_vision_encoder(seed=1), tmp_path)
    assert first.file.folder != second.file.folder
    assert not torch.equal(first.load(_media(3)), second.load(_media(3)))


def test_the_dtype_that_the_encoder_computes_in_is_part_of_the_key(tmp_path: Path) -> None:
    full = FeatureStore.build(synthetic_images(3), tiny_vision_encoder(), tmp_path)
    half = FeatureStore.build(synthetic_images(3), tiny_vision_encoder().bfloat16(), tmp_path)
    assert not torch.equal(full.load(_media(3)), half.load(_media(3)))


def test_content_is_size_and_pixels() -> None:
    flat, tall = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    other = Image.new("RGB", (4, 2), (0, 0, 1))
    assert content_hash(flat) == content_hash(flat.copy())
    assert len({content_hash(image) for image in (flat, tall, other)}) == 3


def test_statistics_are_those_of_all_patches(tmp_path: Path) -> None:
    images = synthetic_images(130)
    store = FeatureStore.build(images, tiny_vision_encoder(), tmp_path)
    for keys in (None, [image.key for image in images[5:90]]):
        rows = sorted({store.rows[key] for key in keys or store.rows})
        patches = store.file.read(rows).astype(np.float64).reshape(-1, 24)
        mean, std = store.statistics(keys)
        np.testing.assert_allclose(mean.numpy(), patches.mean(axis=0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(std.numpy(), patches.std(axis=0), rtol=1e-5)
    with pytest.raises(ValueError, match="at least one image"):
        store.statistics([])


def test_an_unknown_image_is_named(tmp_path: Path) -> None:
    store = FeatureStore.build(synthetic_images(3), tiny_vision_encoder(), tmp_path)
    with pytest.raises(KeyError, match="one of its 3 images, got 'synthetic/grey-circle/3'"):
        store.load(_media(7))


def test_an_interrupted_build_continues(tmp_path: Path) -> None:
    encoder = Counting()
    encoder.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        FeatureStore.build(synthetic_images(10), encoder, tmp_path, batch_size=3)
    assert encoder.images == 6
    encoder.stop_at = None
    store = FeatureStore.build(synthetic_images(10), encoder, tmp_path, batch_size=3)
    assert encoder.images == 10
    assert torch.equal(store.load(_media(10)), EncodingLoader(encoder)(_media(10)))


@pytest.mark.parametrize(
    ("data_bytes", "index_bytes"), [(700, 0), (768, 0), (768 * 2, 17), (0, 32)]
)
def test_half_written_rows_are_cut_off_and_encoded_again(
    tmp_path: Path, data_bytes: int, index_bytes: int
) -> None:
    """What a killed process can leave behind the last whole row, and an index without its row."""
    encoder = Counting()
    folder = FeatureStore.build(synthetic_images(4), encoder, tmp_path).file.folder
    for name, extra in (("rows.f16", data_bytes), ("index.bin", index_bytes)):
        with (folder / name).open("ab") as file:
            file.write(os.urandom(extra))
    images = synthetic_images(6)
    store = FeatureStore.build(images, encoder, tmp_path)
    assert (folder / "rows.f16").stat().st_size == 6 * ROW_BYTES
    assert (folder / "index.bin").stat().st_size == 6 * 32
    assert torch.equal(store.load(_media(6)), EncodingLoader(encoder)(_media(6)))


def test_a_corrupt_image_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    bad = tmp_path / "holiday.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    images = [*synthetic_images(4), ImageRef("user/holiday", partial(open_image, bad))]
    encoder = Counting()
    with pytest.raises(ValueError, match=r"holiday\.png"):
        FeatureStore.build(images, encoder, tmp_path / "cache", batch_size=2)
    FeatureStore.build(synthetic_images(4), encoder, tmp_path / "cache")
    assert encoder.images == 4


def test_no_space_left_is_said_and_nothing_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Counting()
    folder = FeatureStore.build(synthetic_images(4), encoder, tmp_path).file.folder
    before = {name: (folder / name).read_bytes() for name in ("rows.f16", "index.bin")}

    def full_disk(path: Path, data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("flamingo.data.feature_file._append", full_disk)
        with pytest.raises(
            OSError, match=r"no space left for vision features.*data\.feature_cache.*FLAMINGO_CACHE"
        ):
            FeatureStore.build(synthetic_images(6), encoder, tmp_path)
    assert {name: (folder / name).read_bytes() for name in before} == before
    store = FeatureStore.build(synthetic_images(6), encoder, tmp_path)
    assert torch.equal(store.load(_media(6)), EncodingLoader(encoder)(_media(6)))


def test_some_of_the_disk_is_left_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=feature_file.KEEP_FREE + 4 * ROW_BYTES - 1)
    monkeypatch.setattr(feature_file.shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match=r"no space left for vision features \(64 MiB free\)"):
        FeatureStore.build(synthetic_images(4), tiny_vision_encoder(), tmp_path)
    free.free += 1
    assert len(FeatureStore.build(synthetic_images(4), tiny_vision_encoder(), tmp_path).rows) == 4


def test_features_beyond_half_precision_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="within half precision"):
        FeatureStore.build(synthetic_images(2), Counting(scale=1e6), tmp_path)


def test_a_folder_of_other_features_is_refused(tmp_path: Path) -> None:
    FeatureStore.build(synthetic_images(2), tiny_vision_encoder(), tmp_path)
    fingerprint = tiny_vision_encoder().fingerprint
    with (
        pytest.raises(ValueError, match=r"meta\.json: expected .*'dim': 48.* got .*'dim': 24"),
        FeatureFile(tmp_path, fingerprint, 16, 48, "float32").writing(),
    ):
        pass


def test_the_store_is_small_when_sent_to_workers(tmp_path: Path) -> None:
    store = FeatureStore.build(synthetic_images(50), tiny_vision_encoder(), tmp_path)
    features = store.load(_media(5))
    sent = pickle.dumps(store)
    assert len(sent) < 5_000
    assert torch.equal(pickle.loads(sent).load(_media(5)), features)


def test_a_complete_store_is_opened_while_another_process_writes(tmp_path: Path) -> None:
    built = FeatureStore.build(synthetic_images(5), tiny_vision_encoder(), tmp_path)
    arguments = synthetic_images(5), tiny_vision_encoder(), tmp_path
    with ThreadPoolExecutor(1) as pool, FileLock(built.file.folder / "lock"):
        opened = pool.submit(FeatureStore.build, *arguments)
        assert not wait([opened], timeout=60).not_done
    assert opened.result().rows == built.rows


def test_images_are_read_while_another_process_writes(tmp_path: Path) -> None:
    """So each of several processes reads them, and none waits for the reading of another."""
    lock = FileLock(FeatureStore.build([], tiny_vision_encoder(), tmp_path).file.folder / "lock")
    encoder, read = Counting(), Semaphore(0)

    def counted(image: ImageRef) -> Image.Image:
        read.release()
        return image.open()

    images = [ImageRef(image.key, partial(counted, image)) for image in synthetic_images(5)]
    with ThreadPoolExecutor(1) as pool:
        with lock:
            building = pool.submit(FeatureStore.build, images, encoder, tmp_path)
            assert all(read.acquire(timeout=60) for _ in images)
            assert wait([building], timeout=0.2).not_done and encoder.images == 0
        assert len(building.result().rows) == encoder.images == 5


def test_a_row_that_a_reader_may_know_outlives_its_writer_s_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after two of four hashes: the two are stored."""
    file = FeatureStore.build(synthetic_images(1), tiny_vision_encoder(), tmp_path).file
    whole = feature_file._append

    def full_disk(path: Path, data: bytes) -> None:
        whole(path, data if path.suffix == ".f16" else data[:70])
        if path.suffix != ".f16":
            seen.append(file.stored())
            raise OSError(errno.ENOSPC, "No space left on device")

    seen: list[dict[bytes, int]] = []
    monkeypatch.setattr(feature_file, "_append", full_disk)
    with pytest.raises(OSError, match="no space left"):
        FeatureStore.build(synthetic_images(5), tiny_vision_encoder(), tmp_path)
    assert len(seen[0]) == 3 and file.stored() == seen[0]
    monkeypatch.undo()
    store = FeatureStore.build(synthetic_images(5), tiny_vision_encoder(), tmp_path)
    assert torch.equal(store.load(_media(5)), EncodingLoader(tiny_vision_encoder())(_media(5)))


def test_an_image_that_changes_while_it_is_encoded_is_named(tmp_path: Path) -> None:
    pictures = iter([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (0, 0, 1))])
    changing = ImageRef("user/changing", lambda: next(pictures))
    with pytest.raises(ValueError, match="user/changing: expected the image that was read before"):
        FeatureStore.build([changing], tiny_vision_encoder(), tmp_path)


def _build(folder: Path, start: int, stop: int) -> int:
    encoder = Counting()
    FeatureStore.build(synthetic_images(40)[start:stop], encoder, folder, batch_size=2)
    return encoder.images


def _check_built_once(folder: Path) -> None:
    encoder = Counting()
    store = FeatureStore.build(synthetic_images(40), encoder, folder)
    assert encoder.images == 0
    assert (store.file.folder / "index.bin").stat().st_size == 40 * 32
    assert torch.equal(store.load(_media(40)), EncodingLoader(encoder)(_media(40)))


def test_two_that_build_one_store_at_once_encode_each_image_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        encoded = pool.map(_build, [tmp_path, tmp_path], (0, 10), (30, 40))
    assert sum(encoded) == 40
    _check_built_once(tmp_path)


@pytest.mark.slow
def test_two_processes_build_one_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_build, args=(tmp_path, start, stop))
        for start, stop in ((0, 30), (10, 40))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
        assert process.exitcode == 0
    _check_built_once(tmp_path)
