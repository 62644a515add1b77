"""Every layout: found from its rows, and read into the same records."""

from __future__ import annotations

import re
from typing import Any

import pytest

from holdfast.data.faults import RowFault
from holdfast.data.formats import FORMATS, detect_format, get_format
from holdfast.errors import ConfigError, DataError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}

# name, row, prompt, chosen text, rejected text
PREFERENCE_ROWS: list[tuple[str, dict[str, Any], list[dict[str, str]], str, str]] = [
    ("preference_text", {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, [user("2 + 2?")], "4", "5"),
    (
        "preference_text",
        {"system": "Be brief.", "prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        [SYSTEM, user("2 + 2?")],
        "4",
        "5",
    ),
    (
        "preference_messages",
        {
            "prompt": [SYSTEM, user("2 + 2?"), assistant("3"), user("Sure?")],
            "chosen": [assistant("4")],
            "rejected": [assistant("5")],
        },
        [SYSTEM, user("2 + 2?"), assistant("3"), user("Sure?")],
        "4",
        "5",
    ),
    (
        "preference_messages",
        {"prompt": "2 + 2?", "chosen": [assistant("4")], "rejected": [assistant("5")]},
        [user("2 + 2?")],
        "4",
        "5",
    ),
    (
        "preference_implicit",
        {
            "chosen": [user("2 + 2?"), assistant("3"), user("Sure?"), assistant("4")],
            "rejected": [user("2 + 2?"), assistant("3"), user("Sure?"), assistant("5")],
        },
        [user("2 + 2?"), assistant("3"), user("Sure?")],
        "4",
        "5",
    ),
    (  # as ultrafeedback_binarized: the prompt again as a string, the chosen side again as messages
        "preference_implicit",
        {
            "prompt": "2 + 2?",
            "prompt_id": "ab12",
            "chosen": [user("2 + 2?"), assistant("4")],
            "rejected": [user("2 + 2?"), assistant("5")],
            "messages": [user("2 + 2?"), assistant("4")],
            "score_chosen": 8.5,
            "score_rejected": 8,
        },
        [user("2 + 2?")],
        "4",
        "5",
    ),
    (
        "preference_sharegpt",
        {
            "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "2 + 2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        [SYSTEM, user("2 + 2?")],
        "4",
        "5",
    ),
    (
        "preference_sharegpt",
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "2 + 2?"},
                {"from": "gpt", "value": "3"},
                {"from": "human", "value": "Sure?"},
            ],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        [SYSTEM, user("2 + 2?"), assistant("3"), user("Sure?")],
        "4",
        "5",
    ),
    (
        "preference_alpaca",
        {"instruction": "Add.", "input": "2 + 2", "chosen": "4", "rejected": "5"},
        [user("Add.\n2 + 2")],
        "4",
        "5",
    ),
    (
        "ultrafeedback",
        {
            "source": "sharegpt",
            "instruction": "2 + 2?",
            "models": ["a", "b"],
            "completions": [
                {"model": "a", "response": "5", "overall_score": 2.5, "fine-grained_score": 3.0},
                {"model": "b", "response": "4", "overall_score": 8.0, "fine-grained_score": 4.5},
            ],
        },
        [user("2 + 2?")],
        "4",
        "5",
    ),
    (  # LLaMA-Factory's ranking files in OpenAI's words
        "preference_openai",
        {
            "messages": [SYSTEM, user("2 + 2?")],
            "chosen": assistant("4"),
            "rejected": assistant("5"),
        },
        [SYSTEM, user("2 + 2?")],
        "4",
        "5",
    ),
    (  # LLaMA-Factory's older ranking files
        "alpaca_ranking",
        {"instruction": "Add.", "input": "2 + 2", "output": ["4", "5"]},
        [user("Add.\n2 + 2")],
        "4",
        "5",
    ),
    (  # Dahoas/rm-static
        "hh_prompt",
        {
            "prompt": "\n\nHuman: 2 + 2?\n\nAssistant: 3\n\nHuman: Sure?\n\nAssistant:",
            "response": " 4",
            "chosen": " 4",
            "rejected": " 5",
        },
        [user("2 + 2?"), assistant("3"), user("Sure?")],
        "4",
        "5",
    ),
    (
        "hh_prompt",
        {"prompt": "\n\nHuman: 2 + 2?", "chosen": "\n\nAssistant: 4", "rejected": "\n\nAssistant: 5"},
        [user("2 + 2?")],
        "4",
        "5",
    ),
    (  # LLaMA-Factory's ranking files
        "preference_alpaca",
        {
            "system": "Be brief.",
            "instruction": "Sure?",
            "input": "",
            "history": [["2 + 2?", "3"]],
            "chosen": "4",
            "rejected": "5",
        },
        [SYSTEM, user("2 + 2?"), assistant("3"), user("Sure?")],
        "4",
        "5",
    ),
    (
        "hh_rlhf",
        {
            "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 3\n\nHuman: Sure?\n\nThink: twice.\n\nAssistant: 4",
            "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 3\n\nHuman: Sure?\n\nThink: twice.\n\nAssistant: 5",
        },
        [user("2 + 2?"), assistant("3"), user("Sure?\n\nThink: twice.")],
        "4",
        "5",
    ),
]

# name, row, messages, index where the completion starts
SFT_ROWS: list[tuple[str, dict[str, Any], list[dict[str, str]], int]] = [
    (
        "messages",
        {"messages": [SYSTEM, user("2 + 2?"), assistant("3"), user("Sure?"), assistant("4")]},
        [SYSTEM, user("2 + 2?"), assistant("3"), user("Sure?"), assistant("4")],
        4,
    ),
    (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}],
            "system": "Be brief.",
        },
        [SYSTEM, user("2 + 2?"), assistant("4")],
        2,
    ),
    ("prompt_completion", {"prompt": "2 + 2?", "completion": "4"}, [user("2 + 2?"), assistant("4")], 1),
    (
        "prompt_completion",
        {"prompt": [user("2 + 2?")], "completion": [assistant("3"), user("Sure?"), assistant("4")]},
        [user("2 + 2?"), assistant("3"), user("Sure?"), assistant("4")],
        1,
    ),
    (
        "alpaca",
        {"instruction": "Add 2 + 2", "input": "", "output": "4"},
        [user("Add 2 + 2"), assistant("4")],
        1,
    ),
    (
        "alpaca",
        {"instruction": "Add", "input": "2 + 2", "output": "4"},
        [user("Add\n2 + 2"), assistant("4")],
        1,
    ),
]


@pytest.mark.parametrize(("name", "row", "prompt", "chosen", "rejected"), PREFERENCE_ROWS)
def test_preference_layouts(
    name: str, row: dict[str, Any], prompt: list[dict[str, str]], chosen: str, rejected: str
) -> None:
    form = detect_format([row])
    assert form.name == name
    record = form.to_preference(row, "rows.jsonl:1")
    assert record.prompt == prompt
    assert (record.chosen, record.rejected) == ([assistant(chosen)], [assistant(rejected)])
    assert record.where == "rows.jsonl:1"


@pytest.mark.parametrize(("name", "row", "prompt", "chosen", "rejected"), PREFERENCE_ROWS)
def test_chosen_side_as_demonstration(
    name: str, row: dict[str, Any], prompt: list[dict[str, str]], chosen: str, rejected: str
) -> None:
    record = detect_format([row], "sft").to_sft(row, "rows.jsonl:1")
    assert record.messages == [*prompt, assistant(chosen)]
    assert record.completion_start == len(prompt)


@pytest.mark.parametrize(("name", "row", "messages", "start"), SFT_ROWS)
def test_sft_layouts(name: str, row: dict[str, Any], messages: list[dict[str, str]], start: int) -> None:
    form = detect_format([row], "sft")
    assert form.name == name
    record = form.to_sft(row, "rows.jsonl:1")
    assert (record.messages, record.completion_start) == (messages, start)
    with pytest.raises(DataError, match="a preference needs two"):
        form.to_preference(row, "rows.jsonl:1")


def test_text_layout() -> None:
    form = detect_format([{"text": "Once upon a time"}], "sft")
    assert form.name == "text"
    assert form.to_sft({"text": "Once upon a time"}, "here").text == "Once upon a time"


def test_every_layout_has_a_test() -> None:
    tested = {name for name, *_ in PREFERENCE_ROWS} | {name for name, *_ in SFT_ROWS} | {"text"}
    assert tested == {form.name for form in FORMATS}


def test_annotations_are_kept() -> None:
    row = {
        "prompt": "2 + 2?",
        "chosen": "4",
        "rejected": "5",
        "score_chosen": 8.5,
        "score_rejected": "7",  # a CSV cell
        "margin": float("nan"),  # missing, as tables write it
        "tools": '[{"name": "add"}]',  # JSON text, as columns of one type need it
        "chat_template_kwargs": {"enable_thinking": False},
    }
    record = get_format("preference_text").to_preference(row, "here")
    assert (record.score_chosen, record.score_rejected, record.margin) == (8.5, 7.0, None)
    assert record.tools == [{"name": "add"}]
    assert record.chat_template_kwargs == {"enable_thinking": False}


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
            "prompt": [SYSTEM, user("a")],
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


def test_content_in_text_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]
    row = {"messages": [{"role": "user", "content": parts}, assistant("4")]}
    assert get_format("messages", "sft").to_sft(row, "here").messages[0] == user("2 + 2?")


def test_function_calls_become_tool_calls() -> None:
    """LLaMA-Factory's ShareGPT files: a call, what the tool returned, and the answer."""
    row = {
        "conversations": [
            {"from": "human", "value": "2 + 2?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "It is 4."},
        ],
        "tools": '[{"name": "add"}]',
    }
    record = get_format("sharegpt", "sft").to_sft(row, "here")
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
    assert record.messages == [
        user("2 + 2?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        assistant("It is 4."),
    ]
    assert record.tools == [{"name": "add"}]


def test_null_keys_of_messages_are_left_out() -> None:
    """Arrow gives every message every key that any message has."""
    row = {"messages": [{"role": "user", "content": "a", "name": None}, assistant("b") | {"name": None}]}
    assert get_format("messages", "sft").to_sft(row, "here").messages == [user("a"), assistant("b")]


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
