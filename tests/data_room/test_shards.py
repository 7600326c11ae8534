"""Shards: which there are, what is in them, and where a broken one breaks."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import HTTPError

from flamingo.data.documents import BrokenShard
from flamingo.data.shards import FileShards, Shards, open_shards, read_records
from flamingo.data.tables import FolderShards, TableShards
from flamingo.source_config import ShardsConfig
from tests.written_shards import json_lines, png, write_tar

ROWS = [{"number": n, "text": f"row {n}"} for n in range(5)]


def own(record) -> dict:
    """A record without what the reader adds."""
    return {name: value for name, value in record.items() if not name.startswith("__")}


def read_until_broken(path: Path) -> tuple[list[dict], str]:
    records = []
    with pytest.raises(BrokenShard) as broken:
        for record in FileShards([str(path)]).read(str(path)):
            records.append(own(record))
    assert broken.value.shard == str(path)
    return records, broken.value.reason


def compressed(path: Path, data: bytes) -> Path:
    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(data))
        case ".zst":
            buffer = pa.BufferOutputStream()
            with pa.CompressedOutputStream(buffer, "zstd") as stream:
                stream.write(data)
            path.write_bytes(buffer.getvalue().to_pybytes())
        case ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("docs_no_face_shard_0_v2.jsonl", data)
        case _:
            path.write_bytes(data)
    return path


# ---------------------------------------------------------------------------- which shards


def test_shards_of_a_pattern_and_of_a_folder_are_sorted(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines(ROWS[:1]))
    (tmp_path / "README.md").write_text("no shard")
    expected = tuple(str(tmp_path / f"{name}.jsonl") for name in "abc")
    for place in (tmp_path, tmp_path / "*.jsonl"):
        shards = open_shards(ShardsConfig(files=[str(place)]))
        assert shards.shards == expected
        assert isinstance(shards, Shards)
    twice = ShardsConfig(files=[str(tmp_path / "c.jsonl"), str(tmp_path)])
    assert open_shards(twice).shards == (expected[2], *expected[:2])


def test_no_shards_and_shards_of_several_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"found none"):
        open_shards(ShardsConfig(files=[str(tmp_path / "*.tar")]))
    (tmp_path / "00000.tar").write_bytes(b"")
    (tmp_path / "00000.parquet").write_bytes(b"")  # img2dataset writes both
    with pytest.raises(ValueError, match=r"one kind.*got parquet and tars"):
        open_shards(ShardsConfig(files=[str(tmp_path)]))
    with pytest.raises(ValueError, match=r"one kind.*x\.csv"):
        FileShards(["x.csv"])


def test_a_place_is_files_or_a_hub_name():
    for config in (ShardsConfig(), ShardsConfig(files=["a"], hub="b")):
        with pytest.raises(
            ValueError, match=r"data\.mmc4\.shards: expected exactly one of files and hub"
        ):
            config.check("data.mmc4.shards")


def test_a_split_of_a_data_set_in_the_layout_of_the_hub(tmp_path):
    for name in ("train-00000", "train-00001", "test-00000"):
        path = tmp_path / "data" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(json_lines([{"name": name}]))
    shards = open_shards(ShardsConfig(hub=str(tmp_path)))
    names = [own(record) for shard in shards.shards for record in shards.read(shard)]
    assert names == [{"name": "train-00000"}, {"name": "train-00001"}]
    with pytest.raises(ValueError, match=r"split: expected one of train, test.*'val'"):
        open_shards(ShardsConfig(hub=str(tmp_path), split="val"))


# ---------------------------------------------------------------------------- what is in them


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.zip", ".json"])
def test_json_lines_are_read_in_order(tmp_path, suffix):
    path = compressed(tmp_path / f"a{suffix}", json_lines(ROWS) + b"\n")
    shards = pickle.loads(pickle.dumps(open_shards(ShardsConfig(files=[str(path)]))))
    for _ in range(2):
        records = list(shards.read(str(path)))
        assert [own(record) for record in records] == ROWS
    assert [record["__key__"] for record in records] == [f"{path}/{n}" for n in range(5)]
    assert {record["__url__"] for record in records} == {str(path)}


def test_parquet_gives_images_as_their_bytes(tmp_path):
    features = datasets.Features(
        {
            "texts": datasets.List(datasets.Value("string")),
            "images": datasets.List(datasets.Image()),
        }
    )
    rows = {
        "texts": [[None, f"text {n}"] for n in range(20)],
        "images": [[{"bytes": png(n), "path": None}, None] for n in range(20)],
    }
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    records = [own(record) for record in FileShards([str(path)]).read(str(path))]
    assert records == [{"texts": rows["texts"][n], "images": rows["images"][n]} for n in range(20)]


def test_members_of_a_tar_are_grouped_by_their_name(tmp_path):
    members = [
        ("a/0.jpg", b"jpg 0"),
        ("a/0.TXT", b"txt 0"),
        ("a/1.0.jpg", b"frame 0"),
        ("a/1.1.jpg", b"frame 1"),
        ("a/.hidden.txt", b"hidden"),
        ("README", b"no suffix"),
        ("b/1.json", b"{"),  # another folder is another sample
    ]
    for path in (tmp_path / "a.tar", tmp_path / "a.tar.gz"):
        write_tar(tmp_path / "a.tar", members)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
        assert [own(record) for record in FileShards([str(path)]).read(str(path))] == [
            {"jpg": b"jpg 0", "txt": b"txt 0"},
            {"0.jpg": b"frame 0", "1.jpg": b"frame 1"},
            {"json": b"{"},
        ]


def test_fields_that_come_late_in_a_shard_are_not_lost(tmp_path):
    members = [(f"{n}.jpg", b"x") for n in range(10)] + [("10.png", b"y"), ("11.json", b"{}")]
    path = write_tar(tmp_path / "a.tar", members)
    records = [own(record) for record in FileShards([str(path)]).read(str(path))]
    assert records[9:] == [{"jpg": b"x"}, {"png": b"y"}, {"json": b"{}"}]


# ---------------------------------------------------------------------------- broken shards


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("bad", [b'{"number": 3, "te\n', b"[1]\n", b'{"a": "\xff"}\n'])
def test_a_line_that_is_no_json_object_is_an_empty_record(tmp_path, suffix, bad):
    data = json_lines(ROWS[:3]) + bad + json_lines(ROWS[4:])
    path = str(compressed(tmp_path / f"a{suffix}", data))
    records = list(FileShards([path]).read(path))
    assert [own(record) for record in records] == [*ROWS[:3], {}, *ROWS[4:]]
    assert records[4]["__key__"] == f"{path}/4"


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_truncated_compressed_file_is_broken(tmp_path, suffix):
    path = compressed(tmp_path / f"a{suffix}", json_lines(ROWS))
    path.write_bytes(path.read_bytes()[:-9])
    records, _ = read_until_broken(path)
    assert records == ROWS[: len(records)]


def test_members_before_a_tars_truncation_are_given(tmp_path):
    members = [(f"{n}.{kind}", bytes([n]) * 600) for n in range(3) for kind in ("jpg", "txt")]
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    given = [{"jpg": bytes([n]) * 600, "txt": bytes([n]) * 600} for n in range(3)]
    path = tmp_path / "a.tar"
    member = 512 + 1024  # header, and 600 bytes in blocks of 512
    for cut, complete in (
        (4 * member + 700, 1),  # in the content of 2.jpg: only its header says 1 is complete
        (5 * member + 700, 2),  # in the content of 2.txt: 2 is not complete
        (5 * member + 100, 2),  # in a header
        (5 * member, 2),  # between two members
        (6 * member, 2),  # behind the last one, which cannot be known
    ):
        path.write_bytes(whole[:cut])
        records, reason = read_until_broken(path)
        assert records == given[: len(records)]
        assert len(records) >= complete - 1, cut
        assert len(records) <= 2
        assert reason.startswith("ReadError"), reason
    damaged = bytearray(whole)
    damaged[4 * member : 4 * member + 512] = b"\x55" * 512
    path.write_bytes(damaged)
    records, reason = read_until_broken(path)
    assert records == given[:1]
    assert f"at byte {4 * member:,}" in reason


def test_rows_before_a_damaged_row_group_are_given(tmp_path):
    path = tmp_path / "a.parquet"
    data = {"number": list(range(40)), "text": [f"{n:0100d}" for n in range(40)]}
    datasets.Dataset.from_dict(data).to_parquet(path, batch_size=20)
    content = path.read_bytes()
    text = pq.ParquetFile(path).metadata.row_group(1).column(1)
    start, size = text.dictionary_page_offset, text.total_compressed_size
    path.write_bytes(content[:start] + b"\xff" * size + content[start + size :])
    good = [{"number": n, "text": f"{n:0100d}"} for n in range(20)]
    records, _ = read_until_broken(path)
    assert records == good
    path.write_bytes(content[: len(content) // 2])  # the index is at the end: nothing can be read
    assert read_until_broken(path)[0] == []


def test_a_shard_that_is_gone_is_broken_and_a_failing_disk_is_not(tmp_path):
    path = tmp_path / "a.jsonl"
    assert "FileNotFoundError" in read_until_broken(path)[1]
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        list(FileShards([str(path)]).read(str(path)))


def test_a_network_that_fails_is_not_a_broken_shard():
    def fails():
        raise HTTPError("no connection")
        yield {}

    with pytest.raises(HTTPError, match="no connection"):
        list(read_records("a.jsonl", fails))


def test_a_broken_shard_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(BrokenShard("a.tar", "why")))
    assert (error.shard, error.reason, str(error)) == ("a.tar", "why", "a.tar: why")


# ---------------------------------------------------------------------------- tables and folders


def test_a_table_is_read_in_parts():
    shards = pickle.loads(pickle.dumps(TableShards("t.json", ROWS, per_shard=2)))
    assert shards.shards == ("t.json#0", "t.json#2", "t.json#4")
    read = [[own(record) for record in shards.read(shard)] for shard in shards.shards]
    assert read == [ROWS[:2], ROWS[2:4], ROWS[4:]]
    with pytest.raises(ValueError, match=r"t\.json: expected records"):
        TableShards("t.json", [])


def test_a_folder_of_folders_is_read_in_parts(tmp_path):
    for clip in ("b", "a", "c"):
        (tmp_path / clip).mkdir()
        (tmp_path / clip / "0.jpg").write_bytes(b"")
        (tmp_path / clip / ".hidden").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no clip")
    shards = FolderShards(tmp_path, per_shard=2)
    read = [[own(record) for record in shards.read(shard)] for shard in shards.shards]
    files = [{"0.jpg": str(tmp_path / clip / "0.jpg")} for clip in "abc"]
    assert read == [files[:2], files[2:]]
    with pytest.raises(ValueError, match=r"sub-folders, found none"):
        FolderShards(tmp_path / "a")


def test_keys_differ_within_a_data_set(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    shards = open_shards(ShardsConfig(files=[str(tmp_path)]))
    keys = [record["__key__"] for shard in shards.shards for record in shards.read(shard)]
    assert len(set(keys)) == 10
