"""What no record can be made of, in every layout: the place, the key and the reason."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.data.faults import RowFault
from holdfast.data.formats import get_format
from tests.data.encoding import assistant, message, user

# what `to_csv` of a table of lists writes: Python's spelling, the comma between two objects left out
SHOWN = "[{'content': 'a', 'role': 'user'}\n {'content': 'b', 'role': 'assistant'}]"

# layout, row, reason, words of the message
FAULTS: list[tuple[str, Any, str, str]] = [
    (
        "preference_text",
        {"prompt": "a", "chosen": "b"},
        "missing_key",
        "no 'rejected' .keys here: prompt, chosen",
    ),
    (
        "preference_text",
        {"prompt": "a", "chosen": 5, "rejected": "c"},
        "wrong_type",
        "'chosen'.*not a number",
    ),
    ("preference_text", {"prompt": "a", "chosen": None, "rejected": "c"}, "wrong_type", "'chosen'.*not null"),
    ("preference_text", {"prompt": "a", "chosen": " ", "rejected": "c"}, "empty_completion", "'chosen'"),
    ("preference_text", {"prompt": "a", "chosen": "c", "rejected": "c"}, "equal_pair", "same text"),
    ("preference_text", {"prompt": "", "chosen": "b", "rejected": "c"}, "empty_prompt", "no text to answer"),
    (
        "preference_text",
        {"prompt": "a\ud800", "chosen": "b", "rejected": "c"},
        "invalid_text",
        "'prompt'.*U.D800",
    ),
    ("preference_text", ["a", "b"], "wrong_type", "object of named values, not a list"),
    (
        "preference_text",
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "x"},
        "wrong_type",
        "'margin'",
    ),
    (
        "preference_text",
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1e999},
        "wrong_type",
        "finite",
    ),
    (
        "preference_text",
        {"prompt": "a", "chosen": "b", "rejected": "c", "tools": "[{"},
        "wrong_type",
        "'tools'",
    ),
    (
        "preference_text",
        {"prompt": "a", "chosen": "b", "rejected": "c", "tools": {"a": 1}},
        "wrong_type",
        "a list",
    ),
    (
        "preference_messages",
        {"prompt": [user("a")], "chosen": [{"role": "critic", "content": "b"}], "rejected": [assistant("c")]},
        "unknown_role",
        "'chosen'.0. has the role 'critic'",
    ),
    (
        "preference_messages",
        {"prompt": [user("a")], "chosen": [{"role": "assistant"}], "rejected": [assistant("c")]},
        "missing_key",
        "'chosen'.0. has no 'content'",
    ),
    (
        "preference_messages",
        {"prompt": [user("a")], "chosen": ["b"], "rejected": [assistant("c")]},
        "wrong_type",
        "'chosen'.0. must be a message",
    ),
    (
        "preference_messages",
        {"prompt": [user("a")], "chosen": [user("b")], "rejected": [assistant("c")]},
        "turn_order",
        "'chosen' begins with a user turn",
    ),
    (
        "preference_messages",
        {
            "system": "S",
            "prompt": [message("system", "Be brief."), user("a")],
            "chosen": [assistant("b")],
            "rejected": [assistant("c")],
        },
        "turn_order",
        "two system prompts",
    ),
    (
        "preference_implicit",
        {"chosen": [user("a"), assistant("b")], "rejected": [user("A"), assistant("c")]},
        "turn_order",
        "share 0 turns",
    ),
    (
        "preference_implicit",
        {
            "chosen": [user("a"), assistant("b")],
            "rejected": [user("a"), assistant("x"), user("d"), assistant("c")],
        },
        "turn_order",
        r"'chosen' \(2 turns\) and 'rejected' \(4\) share 1 turns",
    ),
    (
        "preference_implicit",
        {"chosen": [user("a"), assistant("b")], "rejected": []},
        "empty_completion",
        "'rejected'",
    ),
    (
        "preference_implicit",
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]},
        "equal_pair",
        "same text",
    ),
    (
        "preference_sharegpt",
        {
            "conversations": [{"from": "narrator", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        "unknown_role",
        "known: human, gpt",
    ),
    (
        "hh_rlhf",
        {"chosen": "Yes.", "rejected": "\n\nHuman: a\n\nAssistant: b"},
        "wrong_type",
        "'chosen' must begin",
    ),
    (
        "hh_rlhf",
        {"chosen": "Note.\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        "wrong_type",
        "not with 'Note.'",
    ),
    (
        "hh_rlhf",
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"},
        "empty_completion",
        "'rejected'",
    ),
    (
        "hh_rlhf",
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c\n\nHuman: d"},
        "turn_order",
        "'rejected' ends with a `Human:` turn .'d'., which nothing answers; take that turn off",
    ),
    (
        "hh_rlhf",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c",
            "rejected": "\n\nHuman: a\n\nAssistant: d",
        },
        "turn_order",
        "'chosen' ends with two `Assistant:` turns, the last 'c'; where the marker belongs to the answer's text",
    ),
    (
        "hh_rlhf",
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: A\n\nAssistant: c"},
        "turn_order",
        "turn 1 differs: 'chosen' has `Human:` 'a' and 'rejected' has `Human:` 'A'; both transcripts must be the same",
    ),
    (
        "hh_rlhf",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        },
        "turn_order",
        "'chosen' has 2 turns and 'rejected' 4; both transcripts",
    ),
    (
        "hh_rlhf",
        {"chosen": "\n\nHuman: \n\nAssistant: b", "rejected": "\n\nHuman: \n\nAssistant: c"},
        "empty_prompt",
        "no text to answer",
    ),
    (
        "hh_prompt",
        {"prompt": "\n\nHuman: a\n\nAssistant: b", "chosen": "c", "rejected": "d"},
        "turn_order",
        "'prompt' ends with an `Assistant:` turn that has text",
    ),
    (
        "hh_prompt",
        {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": "c", "rejected": "d\n\nHuman: e"},
        "turn_order",
        "'rejected' holds a further `Human:` turn behind its answer",
    ),
    (
        "hh_prompt",
        {"prompt": "a", "chosen": "c", "rejected": "d"},
        "wrong_type",
        "'prompt' must begin with a blank line and `Human:`",
    ),
    (
        "alpaca_ranking",
        {"instruction": "a", "output": ["b", "c", "d"]},
        "wrong_type",
        "'output' must be a list of two answers, the better first, not of 3",
    ),
    ("alpaca_ranking", {"instruction": "a", "output": "b"}, "wrong_type", "two answers.* but a string"),
    (
        "preference_text",
        {"prompt": SHOWN, "chosen": "b", "rejected": "c"},
        "wrong_type",
        "'prompt' is a message list written as text; save the rows as jsonl or parquet",
    ),
    (
        "preference_text",
        {"prompt": "a", "chosen": "b", "rejected": "[{'from': 'gpt', 'value': \"it's\"}]"},
        "wrong_type",
        "'rejected' is a message list written as text",
    ),
    ("messages", {"messages": SHOWN}, "wrong_type", "'messages' is a message list written as text"),
    (
        "sharegpt",
        {"conversations": '[{"from": "human"'},
        "wrong_type",
        "'conversations' is a message list wr",
    ),
    (
        "ultrafeedback",
        {"instruction": "a", "completions": SHOWN},
        "wrong_type",
        "'completions' is a message list written as text",
    ),
    (
        "alpaca",
        {"instruction": "a", "output": "b", "history": "[['c', 'd']]"},
        "wrong_type",
        "'history' is a message list written as text",
    ),
    ("messages", {"messages": "hello"}, "wrong_type", "'messages' must be a list of messages, not a string"),
    (
        "preference_alpaca",
        {"instruction": "a", "history": ["b"], "chosen": "c", "rejected": "d"},
        "wrong_type",
        "'history' must be a list of .question, answer. pairs",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "add(2)"}]},
        "wrong_type",
        r"'conversations'\[1\].value must be a function call as JSON",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "[]"}]},
        "wrong_type",
        "must be {name, arguments}",
    ),
    (
        "messages",
        {"messages": [{"role": ["user"], "content": "a"}, assistant("b")]},
        "unknown_role",
        "has the role .'user'.",
    ),
    (
        "ultrafeedback",
        {"instruction": "a", "completions": [{"response": "b"}]},
        "missing_key",
        "0 of 1 completions have a text and an 'overall_score'; a demonstration needs one",
    ),
    (
        "ultrafeedback",
        {"instruction": "a", "completions": [{"response": 5, "overall_score": 7}]},
        "wrong_type",
        r"'completions'\[0\].response must be a string, not a number",
    ),
    ("messages", {"messages": [user("a")]}, "turn_order", "user turn"),
    ("messages", {"messages": []}, "empty_completion", "no message"),
    (
        "messages",
        {"messages": [{"role": "user", "content": ["x"]}, assistant("b")]},
        "wrong_type",
        "not text",
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": "a", "name": "\udfff"}, assistant("b")]},
        "invalid_text",
        "name holds a lone surrogate",
    ),
    ("prompt_completion", {"prompt": "a", "completion": "\n"}, "empty_completion", "the completion"),
    ("alpaca", {"instruction": "a"}, "missing_key", "no 'output'"),
    ("text", {"text": ""}, "empty_completion", "'text'"),
]


@pytest.mark.parametrize(("name", "row", "reason", "words"), FAULTS)
def test_faults_name_place_key_and_reason(name: str, row: Any, reason: str, words: str) -> None:
    with pytest.raises(RowFault, match=words) as fault:
        get_format(name, "sft").to_sft(row, "rows.jsonl:17")
    assert fault.value.reason == reason
    assert str(fault.value).startswith(f"rows.jsonl:17: {reason}: ")


def test_a_row_nested_too_deeply_is_a_fault() -> None:
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    row = {"messages": [{"role": "user", "content": "a", "extra": nested}, assistant("b")]}
    with pytest.raises(RowFault, match="nested too deeply"):
        get_format("messages", "sft").to_sft(row, "rows.jsonl:1")
