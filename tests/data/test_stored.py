"""Records on disk are the records that were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from holdfast.data.records import preference_record, sft_record, text_record, visible
from holdfast.data.stored import StoredRows, from_json, table_of, to_json, writing

TEXT = st.text(min_size=1).filter(visible)
SCORE = st.none() | st.floats(allow_nan=False)


def turn(role: str, content: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


@given(TEXT, TEXT, SCORE, SCORE, st.none() | st.just([{"type": "function"}]))
def test_a_record_survives(prompt: str, chosen: str, score: Any, margin: Any, tools: Any) -> None:
    pair = preference_record(
        "rows.jsonl:1",
        turn("user", prompt),
        turn("assistant", chosen),
        turn("assistant", chosen + "!"),
        tools,
        {"enable_thinking": False},
        score,
        margin=margin,
    )
    demonstration = sft_record("r:2", turn("user", prompt) + turn("assistant", chosen), 1, tools)
    for record in (pair, demonstration, text_record("r:3", prompt)):
        text = to_json(record)
        assert text.isascii()
        assert from_json(text) == record


def test_a_file_of_two_tables_counts_on(tmp_path: Path) -> None:
    records = [text_record(f"r:{n}", f"text {n}") for n in range(5)]
    with writing(tmp_path / "rows.arrow") as write:
        write(table_of([(record, None) for record in records[:3]], seed=0))
        write(table_of([(record, None) for record in records[3:]], seed=0))
    rows = StoredRows.open(tmp_path / "rows.arrow")
    assert list(rows) == records
    assert rows.tokens["row_index"][:] == [0, 1, 2, 3, 4]
    assert list(rows.select([4, 0])) == [records[4], records[0]]
    assert rows.select([1]).ids == [records[1].id]


def test_no_rows_are_a_file_too(tmp_path: Path) -> None:
    with writing(tmp_path / "rows.arrow"):
        pass
    rows = StoredRows.open(tmp_path / "rows.arrow")
    assert (len(rows), list(rows), rows.ids) == (0, [], [])
    assert json.loads(json.dumps(rows.lengths().as_dict())) == {
        "sides": {},
        "dropped": 0,
        "equal_after_cut": 0,
    }
