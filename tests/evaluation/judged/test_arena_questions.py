from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.judged.arena_questions import ArenaQuestion, read_questions
from tests.evaluation.small_benchmarks import write_rows


def test_each_layout_gives_the_same_kind_of_question(tmp_path: Path) -> None:
    rows = [
        {"uid": "a", "category": "hard_prompt", "cluster": "c", "prompt": "do a"},
        {"question_id": "b", "cluster": "c", "turns": [{"content": "do b"}]},  # before April 2025
        {"question_id": 81, "category": "writing", "turns": ["first", "second"]},  # MT-Bench
    ]
    assert read_questions(write_rows(tmp_path / "question.jsonl", rows)) == [
        ArenaQuestion("a", "hard_prompt", "c", "do a"),
        ArenaQuestion("b", "arena-hard-v0.1", "c", "do b"),
        ArenaQuestion("81", "writing", "", "[turn 1]\nfirst\n\n[turn 2]\nsecond"),
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "holds no question"),
        ([{"uid": "a", "prompt": "x"}, {"uid": "a", "prompt": "y"}], "jsonl:2: .*'a' is there twice"),
        ([{"uid": True, "prompt": "x"}], "a text or a number, not True"),
        ([{"prompt": "x"}], "has no 'question_id'"),
        ([{"uid": "a", "turns": []}], "'turns' must be a list of turns"),
        ([{"uid": "a", "turns": [{"content": 3}]}], "'turns.0.content' must be a text"),
    ],
)
def test_what_is_no_question_is_named(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_questions(write_rows(tmp_path / "question.jsonl", rows))
