"""Every layout is read into the same records."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.data.formats import FORMATS, detect_format, get_format
from holdfast.errors import DataError
from tests.data.encoding import assistant, message, user

SYSTEM = message("system", "Be brief.")

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
