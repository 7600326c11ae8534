"""Any question answering data set of the ``datasets`` library: a hub name or a local folder.

Which column holds what is said by :class:`Columns`. Images stay in the data set's memory-mapped
table; each is read and decoded when it is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from PIL import Image

from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_unique
from flamingo.evaluation_config import Columns
from flamingo.images import open_image
from flamingo.types import ImageRef

_ROWS = 1000
"""Rows read from the table at once."""


def read_hugging_face(
    source: str,
    split: str,
    columns: Columns,
    *,
    name: str,
    configuration: str | None = None,
    revision: str | None = None,
) -> list[Example]:
    """The rows of ``split``, in order.

    ``source`` is a folder written by ``save_to_disk``, a folder of data files (parquet, ...), or a
    name on the hub, with its ``configuration`` and ``revision``. Images are keyed
    ``{name}/{split}/{image id or row}``, and ``/{place}`` where rows have lists of them. Class
    labels become their names; if ``answers`` is a class label all names are the candidates.

    Raises ``ValueError`` for a split that is not there, and naming the column, and the row, of what
    is not as :class:`Columns` says.
    """
    table = _load(source, split, configuration, revision)
    where = f"{source}, split {split!r}"
    _check_columns(table, columns, where)
    feature = table.features[columns.answers] if columns.answers else None
    candidates = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    pixels = table.select_columns([columns.image]).with_format("arrow")
    examples = []
    numbered = enumerate(zip(_rows(table, columns), _places(pixels, columns.image), strict=True))
    for row, (cells, places) in numbered:
        here = f"{where}, row {row}"
        key = f"{name}/{split}/{_text(cells, 'image_id', here) or row}"
        images = tuple(_image(pixels, columns.image, row, key, place) for place in places)
        examples.append(
            Example(
                id=_text(cells, "id", here) or str(row),
                images=images,
                question=_text(cells, "question", here),
                answers=_answers(cells, here),
                candidates=candidates,
                group=_text(cells, "group", here),
                cluster=images[0].key if images else "",
            )
        )
    return check_unique(examples, Path(source))


# ---------------------------------------------------------------------------- the table


def _load(
    source: str, split: str, configuration: str | None, revision: str | None
) -> datasets.Dataset:
    folder = Path(source)
    if not any((folder / f).is_file() for f in ("dataset_dict.json", "state.json")):
        return datasets.load_dataset(source, configuration, split=split, revision=revision)
    saved = datasets.load_from_disk(source)
    if isinstance(saved, datasets.Dataset):
        own = str(saved.split).partition("[")[0]  # of a slice the split's name
        if saved.split is not None and own != split:  # save_to_disk does not always keep it
            raise ValueError(
                f"{source}: expected the split {split!r}, got a folder of {own!r} alone"
            )
        return saved
    if split not in saved:
        raise ValueError(f"{source}: expected one of the splits {list(saved)}, got {split!r}")
    return saved[split]


def _check_columns(table: datasets.Dataset, columns: Columns, where: str) -> None:
    for part, column in asdict(columns).items():
        if column not in table.column_names and (column or part == "image"):
            raise ValueError(
                f"{where}: columns.{part}: expected one of {table.column_names}, got {column!r}"
            )
    feature = table.features[columns.image]
    if isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    # Files without the library's own metadata have the image's parts for a type.
    parts = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
    if not (isinstance(feature, datasets.Image) or parts):
        raise ValueError(f"{where}: column {columns.image!r}: expected images, got {feature}")


def _rows(table: datasets.Dataset, columns: Columns) -> Iterator[dict[str, Any]]:
    """The values of each row by their part of an example; class labels as names."""
    used = {part: c for part, c in asdict(columns).items() if c and part != "image"}
    names = {
        part: feature.names
        for part, column in used.items()
        if isinstance(feature := table.features[column], datasets.ClassLabel)
    }
    if not used:
        yield from ({} for _ in range(len(table)))
        return
    # A column can serve two parts, and is selected once.
    for batch in table.select_columns(list(dict.fromkeys(used.values()))).iter(_ROWS):
        lists = {part: batch[column] for part, column in used.items()}
        for part, own in names.items():
            lists[part] = [None if v is None or v < 0 else own[v] for v in lists[part]]
        for values in zip(*lists.values(), strict=True):
            yield dict(zip(lists, values, strict=True))


def _places(pixels: datasets.Dataset, column: str) -> Iterator[tuple[int | None, ...]]:
    """Where each row's images are: in its list, or ``None`` for an image that is the cell itself.

    Their bytes are not touched.
    """
    listed = isinstance(pixels.features[column], datasets.List | datasets.LargeList)
    for batch in pixels.iter(_ROWS):
        cells = _arrow(batch).column(column)
        if listed:
            for chunk in cells.chunks:
                lengths = chunk.value_lengths().to_pylist()
                yield from (tuple(range(length or 0)) for length in lengths)
        else:
            yield from (() if null else (None,) for null in cells.is_null().to_pylist())


# ---------------------------------------------------------------------------- the cells


def _arrow(rows: object) -> pyarrow.Table:
    """What a data set formatted as arrow gives for some of its rows."""
    assert isinstance(rows, pyarrow.Table)
    return rows


def _image(
    pixels: datasets.Dataset, column: str, row: int, key: str, place: int | None
) -> ImageRef:
    key = key if place is None else f"{key}/{place}"
    return ImageRef(key, _Cell(pixels, column, row, place, key))


@dataclass(frozen=True, slots=True)
class _Cell:
    """An image of the table, read when it is called."""

    pixels: datasets.Dataset
    column: str
    row: int
    place: int | None
    key: str

    def __call__(self) -> Image.Image:
        return open_image(self._kept(), name=self.key)

    def stored(self) -> bytes:
        kept = self._kept()
        return kept if isinstance(kept, bytes) else Path(kept).read_bytes()

    def _kept(self) -> bytes | str:
        """Its encoded bytes, or the file that the table names."""
        cell = _arrow(self.pixels[self.row]).column(self.column)[0].as_py()
        image = cell if self.place is None else cell[self.place]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise ValueError(f"{self.key}: expected an image, got null")
        return image["path"] if image["bytes"] is None else image["bytes"]


def _text(cells: dict[str, Any], part: str, where: str) -> str:
    """Text, or a whole number as text; "" for null."""
    value = cells.get(part)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{where}: {part}: expected text or a whole number, got {value!r}")
    return str(value)


def _answers(cells: dict[str, Any], where: str) -> tuple[str, ...]:
    value = cells.get("answers")
    if value is None:
        return ()
    if isinstance(value, dict) and isinstance(value.get("answer"), list):
        value = value["answer"]  # how older files store lists of objects
    if not isinstance(value, list):
        return (_text(cells, "answers", where),)
    texts = []
    for one in value:
        text = one.get("answer") if isinstance(one, dict) else one
        if not isinstance(text, str):
            raise ValueError(
                f"{where}: answers: expected texts or objects with an answer, got {one!r}"
            )
        texts.append(text)
    return tuple(texts)
