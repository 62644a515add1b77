"""Reading other people's files: what is there, what is odd, and what a message says."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.judged.assets import (
    JudgePrompt,
    assets_folder,
    content_hash,
    field_of,
    find_file,
    keyed,
    read_table,
    require_file,
    text_of,
)
from holdfast.evaluation.judged.judge_prompts import PAIR_PROMPT, RATING_PROMPTS
from holdfast.evaluation.judged.verdict_parsers import LABELS, strict_label, strict_rating


def test_a_hash_is_of_the_content() -> None:
    assert content_hash({"b": 1, "a": "é"}) == content_hash({"a": "é", "b": 1})
    assert content_hash(["a"]) != content_hash(["a "])
    assert content_hash("\ud800")  # a text that is no Unicode has one too
    # `printf '{"a":1}' | sha256sum`
    assert content_hash({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


def test_a_folder_a_hub_name_or_an_error(tmp_path: Path) -> None:
    assert assets_folder(tmp_path, ["x"]) == tmp_path
    with pytest.raises(DataError, match="no such folder; --assets is one"):
        assets_folder(tmp_path / "nowhere", ["x"])
    with pytest.raises(DataError, match="no such folder, and the hub does not give it"):
        assets_folder("nobody/nothing-of-the-kind", ["x"])  # offline in tests


def test_files_are_found_in_their_places(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "q.jsonl").write_text("{}\n", encoding="utf-8")
    assert find_file(tmp_path, ["q.jsonl", "data/q.jsonl"]) == tmp_path / "data" / "q.jsonl"
    with pytest.raises(DataError, match=r"has no questions \(a or b\)"):
        require_file(tmp_path, ["a", "b"], "questions")


def test_rows_with_their_places(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n\n{"a": 2}\n', encoding="utf-8")
    assert [row for _, row in read_table(file)] == [{"a": 1}, {"a": 2}]
    assert read_table(file)[1][0].endswith("rows.jsonl:3")
    file.write_text('{"a": 1}\n3\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows.jsonl:2"):
        read_table(file)
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.jsonl")


def test_a_path_into_a_row() -> None:
    row = {"games": [{"score": "A>B"}], "n": 3}
    assert field_of("f:1", row, "games", 0, "score") == "A>B"
    for path in (("games", 1), ("n", "x"), ("missing",)):
        with pytest.raises(DataError, match=r"f:1: has no '"):
            field_of("f:1", row, *path)
    with pytest.raises(DataError, match="f:1: 'n' must be a text, not int"):
        text_of("f:1", row, "n")


def test_the_last_row_of_a_question_counts() -> None:
    rows = [("f:1", {"id": 1, "v": "a"}), ("f:2", {"id": 9}), ("f:3", {"id": 1, "v": "b"})]
    found = keyed(rows, lambda place, row: row["id"], [2, 1])
    assert found.rows == {1: ("f:3", {"id": 1, "v": "b"})}
    assert found.as_record() == {"twice": [1], "extra": [9], "missing": [2]}
    with pytest.raises(DataError, match="f:1: a question's id"):
        keyed([("f:1", {"id": [1]})], lambda place, row: row["id"], [])


def test_braces_in_texts_are_texts() -> None:
    prompt = JudgePrompt("p", "", "Q {question}")
    assert prompt.messages({"question": "{answer} {0}"}) == [{"role": "user", "content": "Q {answer} {0}"}]
    with pytest.raises(DataError, match="judge prompt 'p': cannot be filled"):
        JudgePrompt("p", "", "{nope}").fill({"question": "x"})


def test_our_own_prompts_ask_for_what_is_parsed() -> None:
    values = dict.fromkeys(
        "question answer question_1 question_2 answer_1 answer_2 ref_answer_1 ref_answer_2".split(), "TEXT"
    )
    for name, prompt in RATING_PROMPTS.items():
        system, user = prompt.messages(values)
        assert strict_rating(system["content"]).value == 7  # the example of how to write it
        assert user["content"].count("TEXT") == (4 if "multi" in name else 2) + (
            ("math" in name) * (2 if "multi" in name else 1)
        )
    assert all(f"[[{label}]]" in PAIR_PROMPT.system for label in LABELS)
    assert strict_label(PAIR_PROMPT.system).value is None
