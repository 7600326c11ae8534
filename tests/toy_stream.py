"""A data set in shards of JSON lines, small enough to know every document of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from flamingo.data.documents import Record
from flamingo.data.shards import FileShards
from flamingo.data.sources.interleaved import parse_segments
from flamingo.data.stream import StreamSource
from flamingo.testing import synthetic_images
from flamingo.types import InterleavedSequence, Text

BROKEN_PIXELS = b"no image at all"
IMAGES = 5


def write_shards(
    folder: Path, sizes: Iterable[int], broken_images: Collection[str] = (), not_json: int = 0
) -> list[str]:
    """A shard a size, whose documents are named ``<shard>-<number>`` and show an image each.

    Of ``broken_images`` the image is none; the last ``not_json`` lines of each shard are no JSON.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(synthetic_images(IMAGES)):
        image.open().save(folder / "images" / f"{number}.png")
    (folder / "images" / "broken.png").write_bytes(BROKEN_PIXELS)
    paths = []
    for shard, size in enumerate(sizes):
        lines = []
        for number in range(size):
            name = f"{shard}-{number}"
            image = "broken" if name in broken_images else (shard + number) % IMAGES
            segments = [
                {"image": f"images/{image}.png"},
                {"text": f" {name}<|endofchunk|>", "learn": True},
            ]
            lines.append(json.dumps({"segments": segments}))
        path = folder / f"{shard:03}.jsonl"
        path.write_text("".join(f"{line}\n" for line in [*lines, *["{"] * not_json]))
        paths.append(str(path))
    return paths


def read_lines(shard: str) -> Iterator[Record]:
    return FileShards([shard]).read(shard)


def source(shards: list[str], name: str = "toy", **options) -> StreamSource:
    values = {"seed": 3, "lanes": 4, "shuffle": 3} | options
    values.setdefault("read", read_lines)
    values.setdefault("parse", parse_segments)
    return StreamSource(name, shards, **values)


def name_of(sequence: InterleavedSequence) -> str:
    (text,) = (s.text for s in sequence.segments if isinstance(s, Text))
    return text.removesuffix("<|endofchunk|>").strip()


def names(source: StreamSource, indices: Iterable[int]) -> list[str]:
    return [name_of(source.sequence(index)) for index in indices]
