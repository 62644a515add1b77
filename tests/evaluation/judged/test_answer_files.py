"""Answer files that are written anew: nothing is lost, one making a file, and each row says which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.judged.answer_files import how_made, write_answers
from tests.evaluation.small_benchmarks import write_rows

NAME = Path("model_answer/m.jsonl")
MADE = {"generator": "m", "answer_tokens": 1024, "thinking": "keep"}


def answer(number: int, text: str, made: object = MADE) -> dict[str, Any]:
    row = {"question_id": number, "choices": [{"index": 0, "turns": [text]}], "tstamp": 1.0}
    return row if made is None else row | {"made_with": made}


def written(folder: Path, name: Path = NAME) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    write_answers(folder, NAME, rows, lambda _, row: row["question_id"])


def test_answers_to_other_questions_stay_if_they_were_made_alike(tmp_path: Path) -> None:
    write(tmp_path, [answer(1, "a"), answer(2, "b"), answer(3, "c")])
    write(tmp_path, [answer(2, "b") | {"tstamp": 2.0}])
    assert [row["question_id"] for row in written(tmp_path)] == [1, 3, 2]
    assert not (tmp_path / "set_aside").exists()


@pytest.mark.parametrize("made", [None, MADE | {"thinking": "strip"}])
def test_answers_of_another_making_are_put_aside(
    tmp_path: Path, made: object, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = [answer(1, "theirs", made), answer(2, "alike", made), answer(3, "theirs too", made)]
    write_rows(tmp_path / NAME, theirs)
    write(tmp_path, [answer(1, "mine"), answer(2, "alike")])
    assert written(tmp_path) == [answer(1, "mine"), answer(2, "alike")]
    assert written(tmp_path, "set_aside" / NAME) == [theirs[0], theirs[2]]
    assert "answers that others replace are kept" in caplog.text


def rows(*makings: object) -> list[tuple[str, dict[str, Any]]]:
    return [(f"f:{at}", answer(at, "a", making)) for at, making in enumerate(makings)]


def test_one_making_is_the_record(tmp_path: Path) -> None:
    assert how_made(rows(MADE, MADE), tmp_path / "m.jsonl", 1024) == (MADE, [])
    other = MADE | {"answer_tokens": 64, "thinking": "strip"}
    assert how_made(rows(other), tmp_path / "m.jsonl", 1024) == (
        other,
        ["answers of at most 64 tokens, not 1024", "<think> blocks taken out of the answers"],
    )


def test_what_is_not_recorded_is_said_and_several_makings_are_listed(tmp_path: Path) -> None:
    for nothing in ([], rows(None, None)):
        settings, departures = how_made(nothing, tmp_path / "m.jsonl", 1024)
        assert settings == {"answers": "read from m.jsonl; how they were made is not recorded"}
        assert departures == []
    other = MADE | {"thinking": "strip"}
    settings, departures = how_made(rows(None, MADE, other, MADE), tmp_path / "m.jsonl", 1024)
    assert settings == {"answers": "m.jsonl: made in several ways", "makings": [None, MADE, other]}
    assert departures == ["<think> blocks taken out of the answers", "answers made in several ways"]


def test_a_model_by_another_path_is_the_same(tmp_path: Path) -> None:
    write(tmp_path, [answer(1, "a"), answer(2, "b")])
    write(tmp_path, [answer(2, "b", MADE | {"generator": "./m"})])
    assert [row["question_id"] for row in written(tmp_path)] == [1, 2]
    found = [(f"f:{at}", row) for at, row in enumerate(written(tmp_path))]
    assert how_made(found, tmp_path / "m.jsonl", 1024) == (MADE, [])


def test_no_answer_at_all_takes_none_away(tmp_path: Path) -> None:
    write(tmp_path, [answer(1, "a")])
    write(tmp_path, [])
    assert written(tmp_path) == [answer(1, "a")]


def test_a_making_of_another_layout_is_named(tmp_path: Path) -> None:
    for wrong in ("by me", {}, {"answer_tokens": [1]}):
        with pytest.raises(
            DataError, match="f:1: 'made_with' must be an object with 'answer_tokens'; remove it"
        ):
            how_made(rows(MADE, wrong), tmp_path / "m.jsonl", 1024)
