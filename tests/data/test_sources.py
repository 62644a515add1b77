"""Files, folders, saved data sets, hub names and rows in memory; what is missing is named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from holdfast.data.sources import file_of, read_rows
from holdfast.errors import DataError

ROWS = [
    {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    {"prompt": "line\u2028separator, \x00 NUL, 🙂", "chosen": "a\nb", "rejected": 'c,"d"'},
    {"prompt": "3 + 3?", "chosen": "6", "rejected": "7"},
]


def as_jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_parquet(rows: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def test_folder_reads_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(as_jsonl(ROWS[2:]))
    (tmp_path / "a.parquet").write_bytes(as_parquet(ROWS[:2]))
    (tmp_path / "README.md").write_text("not data")
    assert [row for _, row in read_rows(tmp_path)] == ROWS


def test_folder_of_splits_must_be_told_which(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00002.jsonl").write_bytes(as_jsonl(ROWS[:1]))
    (tmp_path / "train-00001-of-00002.jsonl").write_bytes(as_jsonl(ROWS[1:2]))
    (tmp_path / "test.jsonl").write_bytes(as_jsonl(ROWS[2:]))
    with pytest.raises(DataError, match="several splits"):
        read_rows(tmp_path)
    assert [row for _, row in read_rows(tmp_path, split="train")] == ROWS[:2]
    assert [row for _, row in read_rows(tmp_path, split="test")] == ROWS[2:]
    with pytest.raises(DataError, match=r"no file .* starts with 'tra'"):
        read_rows(tmp_path, split="tra")


def test_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data files"):
        read_rows(tmp_path)


def test_saved_dataset(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "two")
    assert [row for _, row in read_rows(tmp_path / "one")] == ROWS
    assert [row for _, row in read_rows(tmp_path / "two", split="test")] == ROWS[:1]
    with pytest.raises(DataError, match=r"several splits .train, test."):
        read_rows(tmp_path / "two")
    with pytest.raises(DataError, match=r"no split 'tests' .did you mean 'test'"):
        read_rows(tmp_path / "two", split="tests")


def test_datasets_in_memory() -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    assert [row for _, row in read_rows(dataset)] == ROWS
    assert [row for _, row in read_rows(datasets.DatasetDict(train=dataset))] == ROWS


def test_hub_name_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match="as a hub name 'nobody/nothing' cannot be loaded: the hub is offline"
    ):
        read_rows("nobody/nothing", split="train")


def test_hub_name_is_loaded_with_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, *, split: str | None, revision: str | None) -> datasets.Dataset:
        asked.extend([name, split, revision])
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = list(read_rows("owner/name", split="train_prefs", revision="abc"))
    assert asked == ["owner/name", "train_prefs", "abc"]
    assert found[0] == ("owner/name row 1", ROWS[0])


def test_a_missing_path_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(as_jsonl(ROWS))
    with pytest.raises(DataError, match=r"no file or folder 'pair.jsonl' in .* .did you mean 'pairs.jsonl'"):
        read_rows(tmp_path / "pair.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"did you mean 'pairs.jsonl'"):
        read_rows("pairs.json")
    assert [row for _, row in read_rows("pairs.jsonl")] == ROWS


def test_settings_that_do_not_apply_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_jsonl(ROWS))
    with pytest.raises(DataError, match="no split 'train'"):
        read_rows(path, split="train")
    with pytest.raises(DataError, match="`revision` belongs to hub names"):
        read_rows(path, revision="main")
    other = tmp_path / "rows.txt"
    other.touch()
    with pytest.raises(DataError, match=r"no kind that can be read .known: .jsonl"):
        read_rows(other)


@pytest.mark.parametrize(
    ("where", "file"),
    [
        ("a/rows.jsonl:17", "a/rows.jsonl"),
        ("C:/rows.json row 3", "C:/rows.json"),
        ("a:1/rows.csv:2", "a:1/rows.csv"),
        ("a/rows.json:1 row 5", "a/rows.json"),
        ("somewhere", ""),
    ],
)
def test_file_of(where: str, file: str) -> None:
    assert file_of(where) == file
