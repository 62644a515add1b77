"""Rows set aside: shown so that a terminal can show them, written so that anything reads them."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from holdfast.data.faults import DEEPEST, EXCERPT, Problem, as_json, printable


def read_back(text: str) -> Any:
    """JSON by its grammar alone, which has no NaN."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_what_could_not_be_read_is_shown_as_it_stood() -> None:
    problem = Problem("a:1", "unparsable_json", "x", '{"prompt": "2 + 2?", "chosen": "vier é')
    assert problem.row_excerpt == '{"prompt": "2 + 2?", "chosen": "vier é'
    assert read_back(problem.as_json())["row"] == problem.row


def test_what_a_terminal_would_obey_is_escaped() -> None:
    row = '{"a": "\x1b[31m\x00\t\u202eb\u2028\ud800\x85'
    problem = Problem("a:1", "unparsable_json", "x", row)
    assert problem.row_excerpt == r'{"a": "\x1b[31m\x00\t\u202eb\u2028\ud800\x85'
    assert problem.as_json().isascii()
    assert read_back(problem.as_json())["row"] == row
    assert printable("plain, é and 🙂") == "plain, é and 🙂"


def test_excerpts_are_cut_behind_their_escapes() -> None:
    assert Problem("a:1", "unparsable_json", "x", "y" * EXCERPT).row_excerpt == "y" * EXCERPT
    assert Problem("a:1", "unparsable_json", "x", "y" * 1000).row_excerpt == "y" * (EXCERPT - 1) + "…"
    assert Problem("a:1", "unparsable_json", "x", "\0" * 150).row_excerpt == r"\x00" * 49 + r"\x0" + "…"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"margin": float("nan"), "score": [float("-inf"), 1.5]}, {"margin": "nan", "score": ["-inf", 1.5]}),
        ({"when": date(2024, 2, 29), "raw": b"\xff"}, {"when": "2024-02-29", "raw": r"b'\xff'"}),
        ({("a", 1): 2, None: 3}, {"('a', 1)": 2, "None": 3}),
        ({"n": 16**5000, "m": 7}, {"n": "0x1" + "0" * 5000, "m": 7}),
    ],
)
def test_any_value_has_a_line_of_json(value: Any, written: Any) -> None:
    assert read_back(as_json(value)) == written


def test_a_row_that_nests_without_end_is_written_as_deep_as_rows_may() -> None:
    row: Any = "bottom"
    for _ in range(5000):
        row = [row]
    text = as_json({"row": row, "sound": 1})
    assert text == '{"row": ' + "[" * (DEEPEST - 1) + '"\\u2026"' + "]" * (DEEPEST - 1) + ', "sound": 1}'
