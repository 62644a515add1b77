from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.judged.judgment_files import of_judge, write_judgments
from tests.evaluation.small_benchmarks import write_rows

NAME = Path("model_judgment") / "j.jsonl"


def row(key: int, *said: str | None) -> dict[str, Any]:
    return {"key": key, "said": list(said)}


def written(folder: Path, name: Path = NAME) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    write_judgments(folder, NAME, rows, lambda _, row: row["key"], lambda _, row: row["said"])


def test_rows_of_other_keys_stay_and_the_same_words_are_no_loss(tmp_path: Path) -> None:
    write_rows(tmp_path / NAME, [row(1, "a", "b"), row(2, "c"), row(3, "d", None)])
    write(tmp_path, [row(1, "a", "b"), row(3, "d", "e")])
    assert written(tmp_path) == [row(2, "c"), row(1, "a", "b"), row(3, "d", "e")]
    assert not (tmp_path / "set_aside").exists()


def test_what_is_replaced_by_other_words_is_kept_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(tmp_path / NAME, [row(1, "a"), row(1, "b"), row(2, "c")])
    write(tmp_path, [row(1, "b")])
    assert written(tmp_path) == [row(2, "c"), row(1, "b")]
    assert written(tmp_path, "set_aside" / NAME) == [row(1, "a")]
    assert "judgments that others replace are kept" in caplog.text
    write_rows(tmp_path / NAME, [row(1, "a"), row(2, "z")])  # as after a stop between the two files
    write(tmp_path, [row(1, "b"), row(2, "c")])
    assert written(tmp_path, "set_aside" / NAME) == [row(1, "a"), row(2, "z")]


def test_of_several_judges_the_one_that_is_asked_for() -> None:
    rows = [("a", 1), ("b", 2), (None, 3)]
    file = Path("m.jsonl")
    assert of_judge(file, rows, "a", lambda row: row[0], asks=True) == [("a", 1), (None, 3)]
    assert of_judge(file, rows[:2], "c", lambda row: row[0], asks=False) == rows[:2]
    with pytest.raises(DataError, match="'m.jsonl': judgments by a, b, not by 'c'"):
        of_judge(file, rows[:2], "c", lambda row: row[0], asks=True)
    assert of_judge(file, [], "c", lambda row: row[0], asks=True) == []
