"""The layout of rows, found from the rows."""

from __future__ import annotations

import re

import pytest

from holdfast.data.faults import RowFault
from holdfast.data.formats import FORMATS, detect_format, get_format
from holdfast.errors import ConfigError, DataError
from tests.data.encoding import assistant, user


def test_malformed_rows_do_not_vote() -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert detect_format([{"chosen": 1}, [], None, {"text": "x"}, good]).name == "preference_text"


def test_the_layout_of_most_rows_is_taken() -> None:
    text = {"prompt": "a", "chosen": "b", "rejected": "c"}
    alpaca = {"instruction": "a", "chosen": "b", "rejected": "c"}
    assert detect_format([alpaca, text, text, alpaca, text]).name == "preference_text"
    assert detect_format([alpaca, text, alpaca]).name == "preference_alpaca"
    form = detect_format([text, text, alpaca])
    assert form.name == "preference_text"
    assert form.taken.startswith(
        "the layout of 2 of its first 3 readable rows; name another with `data.format`"
    )


def test_right_keys_with_wrong_values_are_the_rows_fault() -> None:
    form = detect_format([{"prompt": "a", "chosen": None, "rejected": "c"}])
    assert form.name == "preference_text"
    assert form.taken.startswith("whose keys its first rows have; name another with `data.format`")
    with pytest.raises(RowFault, match="'chosen' must be a string or a list of messages, not null$"):
        form.to_preference({"prompt": "a", "chosen": None, "rejected": "c"}, "rows.jsonl:1")


def test_an_entry_of_the_table_says_nothing_of_how_it_was_taken() -> None:
    form = get_format("preference_text")
    assert form.taken == ""
    with pytest.raises(RowFault, match=r"keys here: instruction, chosen, rejected.$"):
        form.to_preference({"instruction": "a", "chosen": "b", "rejected": "c"}, "rows.jsonl:1")


def test_unknown_layout_lists_what_was_found_and_what_is_known() -> None:
    with pytest.raises(DataError) as error:
        detect_format([{"prompt": "a", "chosen": "b"}], source="rows.jsonl")
    message = str(error.value)
    assert message.startswith("rows.jsonl: no known layout of preference rows")
    assert "keys found: prompt (a string), chosen (a string)" in message
    assert "nearest: 'preference_text', but there is no 'rejected'" in message
    assert all(form.name in message for form in FORMATS if form.kind == "preference")
    assert message.endswith("or name the layout with `data.format` (--format).")


def test_demonstrations_are_no_preferences() -> None:
    way_out = r".`--kind sft`; in a run, leave `align` out."
    with pytest.raises(DataError) as error:
        detect_format([{"messages": [user("a"), assistant("b")]}], source="rows.jsonl")
    headline, found, *_ = str(error.value).splitlines()
    assert headline == "rows.jsonl: no known layout of preference rows"
    assert re.match(f"  these are 'messages' rows: supervised, one completion each {way_out}", found)
    assert "nearest" not in str(error.value)
    with pytest.raises(ConfigError, match=f"hold one completion; a preference needs two {way_out}"):
        get_format("messages", "preference")


def test_demonstrations_with_the_keys_of_a_preference_layout_are_none() -> None:
    """`alpaca` and `alpaca_ranking` have the same keys."""
    with pytest.raises(DataError, match="these are 'alpaca' rows: supervised"):
        detect_format([{"instruction": "a", "input": "", "output": "b"}])


def test_answers_may_look_like_lists() -> None:
    """Code and data are answers too; only messages in Python's spelling are refused."""
    for answer in (
        '[{"role": "user"}]',
        "[{'a': 1}]",
        "[1, 2]",
        "{'role': 'user', 'content': 'a'}",
        "[{'role': 1",
    ):
        row = {"prompt": "a", "chosen": answer, "rejected": "c"}
        assert get_format("preference_text").to_preference(row, "here").chosen == [assistant(answer)]


def test_the_pair_layouts_of_ranking_rows_in_a_mixed_file() -> None:
    static = {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": "b", "rejected": "c"}
    plain = {"prompt": "a", "chosen": "b", "rejected": "c"}
    form = detect_format([static, plain, static])
    assert form.name == "hh_prompt"
    with pytest.raises(RowFault, match="looks like 'preference_text', but the file is read as 'hh_prompt'"):
        form.to_preference(plain, "rows.jsonl:2")
    assert detect_format([static, plain, plain]).name == "preference_text"


def test_no_objects_at_all() -> None:
    with pytest.raises(DataError, match="must be objects of named values, not a string"):
        detect_format(["a", "b"])
    with pytest.raises(DataError, match="not a list; a file that is one array is to be named .json"):
        detect_format([[{"prompt": "a"}]])
    with pytest.raises(DataError, match="no rows"):
        detect_format([])


def test_a_misspelt_layout_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'preference_text'"):
        get_format("preference_texts")
