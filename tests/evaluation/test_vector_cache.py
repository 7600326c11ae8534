"""Vectors are computed once, and never taken for others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flamingo.evaluation.vector_cache import cached_vectors

VECTORS = torch.tensor([[0.1, 2.0], [3.0, -4.0], [5.0, 6.0]])
KEYS = ["a", "b", "c"]


def never() -> torch.Tensor:
    raise AssertionError("computed again")


def cached(folder: Path, compute=never, kind="image", source="enc", keys=KEYS, **options):
    return cached_vectors(folder, kind, source, keys, compute, **options)


def test_vectors_are_computed_once_and_come_back_as_they_were_kept(tmp_path: Path) -> None:
    first = cached(tmp_path, lambda: VECTORS)
    assert first.dtype is torch.float16
    assert torch.equal(first, VECTORS.half())
    assert torch.equal(cached(tmp_path), first)
    names = {path.suffix for path in tmp_path.iterdir()}
    assert names == {".safetensors", ".json", ".lock"}
    (described,) = tmp_path.glob("image-*.json")
    assert json.loads(described.read_text())["items"] == 3


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "text"},
        {"source": "another encoder"},
        {"keys": ["a", "c", "b"]},
        {"storage": torch.bfloat16},
    ],
)
def test_whatever_differs_is_computed_anew_beside_the_old(tmp_path: Path, change: dict) -> None:
    old = cached(tmp_path, lambda: VECTORS)
    new = cached(tmp_path, lambda: VECTORS + 1, **change)
    assert torch.equal(new, (VECTORS + 1).to(change.get("storage", torch.float16)))
    assert torch.equal(cached(tmp_path), old)
    assert torch.equal(cached(tmp_path, **change), new)


def test_what_was_interrupted_is_computed_again(tmp_path: Path) -> None:
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, interrupted)
    assert torch.equal(cached(tmp_path, lambda: VECTORS), VECTORS.half())
    (described,) = tmp_path.glob("*.json")
    described.unlink()  # killed between the two files
    assert torch.equal(cached(tmp_path, lambda: VECTORS), VECTORS.half())
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", ["other", "cut", "missing", "fewer", "meta", "json"])
def test_a_file_that_does_not_hold_what_its_name_says_is_an_error(
    tmp_path: Path, damage: str
) -> None:
    cached(tmp_path, lambda: VECTORS)
    cached(tmp_path, lambda: VECTORS[:2], keys=["a", "b"])
    paths = {
        json.loads(path.read_text())["items"]: path.with_suffix(".safetensors")
        for path in tmp_path.glob("*.json")
    }
    file = paths[3]
    match damage:
        case "other":
            file.write_bytes(b"something else")
        case "cut":
            file.write_bytes(file.read_bytes()[:-2])
        case "missing":
            file.unlink()
        case "fewer":
            file.write_bytes(paths[2].read_bytes())
        case "meta":
            file.with_suffix(".json").write_bytes(paths[2].with_suffix(".json").read_bytes())
        case "json":
            file.with_suffix(".json").write_text("{")
    with pytest.raises(ValueError, match=f"{file.stem}.*expected.*remove"):
        cached(tmp_path)


def test_vectors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one for each of 3 items, got shape \(2, 2\)"):
        cached(tmp_path, lambda: VECTORS[:2])
    with pytest.raises(ValueError, match="finite numbers within float16"):
        cached(tmp_path, lambda: VECTORS * 1e5)
    assert not list(tmp_path.glob("*.json"))
