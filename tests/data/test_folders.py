"""Which files of a folder are rows. What attacks is in tests/faults/test_remote_code_archives.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.data.folders import data_files, unread_kind
from holdfast.errors import DataError


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


def found(folder: Path, split: str | None = None) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in data_files(folder, split)]


def test_files_are_sorted_and_found_in_folders(tmp_path: Path) -> None:
    made(
        tmp_path,
        "b.jsonl",
        "a.CSV",
        "c/d.json.gz",
        "c/b.parquet",
        "README.md",
        "c/notes.txt",
        "rows.jsonl.txt",
    )
    assert found(tmp_path) == ["a.CSV", "b.jsonl", "c/b.parquet", "c/d.json.gz"]


def test_a_split_is_a_name_or_a_folder(tmp_path: Path) -> None:
    made(
        tmp_path,
        "train.jsonl",
        "train-00000-of-00002.jsonl",
        "train/a.jsonl",
        "training.jsonl",
        "x/train.json",
    )
    names = ["train/a.jsonl", "train-00000-of-00002.jsonl", "train.jsonl", "x/train.json"]
    assert found(tmp_path, "train") == names
    with pytest.raises(DataError, match=r"no file in .* starts with 'tra'"):
        data_files(tmp_path, "tra")


@pytest.mark.parametrize(
    "held_out", ["test.jsonl", "eval/rows.jsonl", "valid-1.jsonl", "dev.csv", "x/VALIDATION.json"]
)
def test_what_is_held_out_must_be_told_apart(tmp_path: Path, held_out: str) -> None:
    made(tmp_path, held_out)
    assert found(tmp_path) == [held_out]  # nothing else is there
    made(tmp_path, "rows.jsonl")
    with pytest.raises(DataError, match="files of several splits"):
        data_files(tmp_path, None)


def test_an_empty_folder(tmp_path: Path) -> None:
    for split in (None, "train"):
        with pytest.raises(DataError, match="holds no data files"):
            data_files(made(tmp_path, "README.md"), split)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.pkl", "a pickle"),
        ("a.PT", "a pickle"),
        ("pytorch_model.bin", "a pickle"),
        ("a.tar.gz", "an archive"),
        ("a.zip", "an archive"),
        ("a.jsonl.zst", "an archive"),
        ("a.jsonl.gz", None),
        ("a.gz", None),
        ("tar", None),
        ("a.txt", None),
    ],
)
def test_what_is_not_read(name: str, kind: str | None) -> None:
    words = unread_kind(Path(name))
    assert words is None if kind is None else (words or "").startswith(kind)
