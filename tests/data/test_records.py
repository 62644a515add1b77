"""Records: what is refused whatever the layout, and ids that name content."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.data.faults import RowFault
from holdfast.data.records import as_row, preference_record, sft_record, text_record

USER = {"role": "user", "content": "2 + 2?"}
FOUR = {"role": "assistant", "content": "4"}
FIVE = {"role": "assistant", "content": "5"}
BLANK = {"role": "assistant", "content": " \n\t"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
TOOL = {"role": "tool", "content": "4"}
HIDDEN = "\u200b\u200b\ufeff"  # zero-width


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def asked(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "reason", "words"),
    [
        ([USER], [BLANK], [FIVE], "empty_completion", "'chosen'"),
        ([USER], [FOUR], [BLANK], "empty_completion", "'rejected'"),
        ([USER], [], [FIVE], "empty_completion", "'chosen'"),
        ([USER], [FOUR], [FOUR], "equal_pair", "same text"),
        ([USER], [FOUR], [{"role": "assistant", "content": "4 \n"}], "equal_pair", "same text"),
        ([USER], [{"role": "assistant", "content": " 4"}], [FOUR], "equal_pair", "same text"),
        ([], [FOUR], [FIVE], "empty_prompt", "no text to answer"),
        ([SYSTEM], [FOUR], [FIVE], "empty_prompt", "no text to answer"),
        ([{"role": "user", "content": "  "}], [FOUR], [FIVE], "empty_prompt", "no text to answer"),
        ([USER], [said(HIDDEN)], [FIVE], "empty_completion", "'chosen'"),
        ([USER], [FOUR], [said("4\u200b")], "equal_pair", "same text"),
        ([USER], [said("\ufeff 4\u2028\x00")], [FOUR], "equal_pair", "same text"),
        ([{"role": "user", "content": HIDDEN}], [FOUR], [FIVE], "empty_prompt", "no text to answer"),
        (
            [USER, FOUR, asked("")],
            [FOUR],
            [FIVE],
            "empty_prompt",
            "last turn before the completion .user. is empty",
        ),
        ([USER, FOUR, asked(HIDDEN)], [FOUR], [FIVE], "empty_prompt", "last turn before the completion"),
        ([USER, FOUR, asked(""), SYSTEM], [FOUR], [FIVE], "empty_prompt", "last turn before the completion"),
        ([USER, CALL, TOOL | {"content": ""}], [FOUR], [FIVE], "empty_prompt", "completion .tool. is empty"),
        ([USER, FOUR], [FOUR], [FIVE], "turn_order", "prompt ends with an assistant turn"),
        ([USER], [USER], [FIVE], "turn_order", "'chosen' begins with a user turn"),
        ([USER], [FOUR], [FIVE, USER, FOUR], "turn_order", "'rejected' adds 3 messages"),
    ],
)
def test_pairs_refused(prompt: Any, chosen: Any, rejected: Any, reason: str, words: str) -> None:
    with pytest.raises(RowFault, match=words) as fault:
        preference_record("rows.jsonl:3", prompt, chosen, rejected)
    assert fault.value.reason == reason


@pytest.mark.parametrize(
    ("messages", "start", "reason"),
    [
        ([USER, BLANK], 1, "empty_completion"),
        ([USER], 1, "empty_completion"),
        ([USER, FOUR, USER], 1, "turn_order"),
        ([FOUR], 0, "empty_prompt"),
    ],
)
def test_demonstrations_refused(messages: Any, start: int, reason: str) -> None:
    with pytest.raises(RowFault) as fault:
        sft_record("rows.jsonl:3", messages, start)
    assert fault.value.reason == reason


def test_blank_text_is_refused() -> None:
    with pytest.raises(RowFault) as fault:
        text_record("rows.jsonl:3", " \n\u200b")
    assert fault.value.reason == "empty_completion"


def test_a_call_of_a_tool_is_an_answer() -> None:
    assert preference_record("here", [USER], [CALL], [FOUR]).chosen == [CALL]


def test_a_tool_result_may_be_the_last_turn() -> None:
    assert preference_record("here", [USER, CALL, TOOL], [FOUR], [FIVE]).prompt[-1] == TOOL


def test_what_trains_keeps_its_invisible_characters() -> None:
    record = preference_record("here", [asked("a\u200b")], [said("4\u200b")], [said("\u200f5 ")])
    assert (record.prompt, record.chosen, record.rejected) == (
        [asked("a\u200b")],
        [said("4\u200b")],
        [said("\u200f5 ")],
    )
    assert preference_record("here", [USER], [said("a b")], [said("a\u200bb")]).chosen == [said("a b")]


def test_ids_name_content_not_place() -> None:
    record = preference_record("a.jsonl:1", [USER], [FOUR], [FIVE], score_chosen=5.0)
    assert record.id == preference_record("b.jsonl:9", [USER], [FOUR], [FIVE]).id
    others = [
        preference_record("a.jsonl:1", [USER], [FIVE], [FOUR]),
        preference_record("a.jsonl:1", [SYSTEM, USER], [FOUR], [FIVE]),
        preference_record("a.jsonl:1", [USER], [FOUR], [FIVE], tools=[{"name": "add"}]),
        record.chosen_as_sft(),
    ]
    assert len({record.id, *(other.id for other in others)}) == 5
    assert len(record.id) == 16


def test_key_order_does_not_change_an_id() -> None:
    turned = {"content": "2 + 2?", "role": "user"}
    assert (
        preference_record("x", [turned], [FOUR], [FIVE]).id
        == preference_record("x", [USER], [FOUR], [FIVE]).id
    )


def test_chosen_as_sft() -> None:
    record = preference_record("a.jsonl:1", [SYSTEM, USER], [FOUR], [FIVE], tools=[{"name": "add"}])
    sft = record.chosen_as_sft()
    assert (sft.messages, sft.completion_start) == ([SYSTEM, USER, FOUR], 2)
    assert sft.prompt == record.prompt
    assert (sft.where, sft.tools) == ("a.jsonl:1", [{"name": "add"}])


def test_as_row_leaves_out_what_is_absent() -> None:
    row = as_row(preference_record("a.jsonl:1", [USER], [FOUR], [FIVE], margin=0.0))
    assert set(row) == {"id", "prompt", "chosen", "rejected", "margin"}
