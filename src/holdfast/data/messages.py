"""One value of a row -> checked messages. Both spellings are read: {role, content} and {from, value}."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from holdfast.data.faults import RowFault, as_json, kind_of, names_of
from holdfast.data.records import Message, Row

ROLES = ("system", "developer", "user", "assistant", "tool")
# ShareGPT's words for them.
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}
# A list of objects as Python shows it, the commas left out by NumPy: what a table of lists gives as CSV.
_SHOWN_LIST = re.compile(r"\s*\[\s*\{\s*'.*\}\s*\]\s*", re.DOTALL)
_SHOWN_ROLE, _SHOWN_CONTENT = re.compile(r"'(role|from)':"), re.compile(r"'(content|value)':")
# Of `apply_chat_template` itself. A row that set them would bring a template of its own, or end the rendering.
TOKENIZER_ARGUMENTS = frozenset(
    "self conversation messages tools chat_template add_generation_prompt continue_final_message tokenize padding "
    "truncation max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs".split()
)
FUNCTION_CALL = "function_call"  # ShareGPT's role of an assistant turn that calls tools


def value_of(row: Row, key: str, name: str = "the row") -> Any:
    """The value under `key` of the row, or of the message called `name`."""
    if key not in row:
        raise RowFault("missing_key", f"{name} has no '{key}' (keys here: {names_of(row)})")
    return row[key]


def text_of(row: Row, key: str) -> str:
    """The string under `key`."""
    return checked_text(value_of(row, key), f"'{key}'")


def optional_text(row: Row, key: str) -> str | None:
    """The string under `key`; None where it is absent, null or empty."""
    value = row.get(key)
    return checked_text(value, f"'{key}'") if value not in (None, "") else None


def checked_text(value: Any, name: str) -> str:
    """`value` as a string of valid Unicode."""
    if not isinstance(value, str):
        raise RowFault("wrong_type", f"{name} must be a string, not {kind_of(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFault(
            "invalid_text",
            f"{name} holds a lone surrogate or a byte that is not UTF-8 (U+{ord(value[error.start]):04X} at "
            f"character {error.start}); remove it or write the whole character",
        ) from None
    return value


def refuse_written_list(value: Any, name: str) -> None:
    """Raise the fault of a list that stands as text where a list is needed; any other value passes."""
    if isinstance(value, str) and checked_text(value, name).lstrip().startswith(("[", "{")):
        raise RowFault(
            "wrong_type", f"{name} is a message list written as text; save the rows as jsonl or parquet"
        )


def _refuse_shown_messages(text: str, name: str) -> None:
    """Raise the fault of messages in Python's spelling where a text may stand."""
    if _SHOWN_LIST.fullmatch(text) and _SHOWN_ROLE.search(text) and _SHOWN_CONTENT.search(text):
        refuse_written_list(text, name)


def messages_of(row: Row, key: str) -> list[Message]:
    """The conversation under `key`: a list of messages."""
    value = value_of(row, key)
    refuse_written_list(value, f"'{key}'")
    if not isinstance(value, list):
        raise RowFault("wrong_type", f"'{key}' must be a list of messages, not {kind_of(value)}")
    return [message_of(item, f"'{key}'[{index}]") for index, item in enumerate(value)]


def turns_of(row: Row, key: str, role: str) -> list[Message]:
    """The turns under `key`: a string is one turn of `role`; a message or a list of messages is itself."""
    value = value_of(row, key)
    if isinstance(value, str):
        text = checked_text(value, f"'{key}'")
        _refuse_shown_messages(text, f"'{key}'")
        return [{"role": role, "content": text}]
    if isinstance(value, dict):
        return [message_of(value, f"'{key}'")]
    if not isinstance(value, list):
        raise RowFault("wrong_type", f"'{key}' must be a string or a list of messages, not {kind_of(value)}")
    return messages_of(row, key)


def message_of(value: Any, name: str) -> Message:
    """One message, its role in the words of chat templates; keys that are null are left out."""
    if not isinstance(value, dict):
        raise RowFault("wrong_type", f"{name} must be a message {{role, content}}, not {kind_of(value)}")
    role_key, content_key = (
        ("from", "value") if "from" in value and "role" not in value else ("role", "content")
    )
    role = value_of(value, role_key, name)
    if role == FUNCTION_CALL:
        return _function_call(value_of(value, content_key, name), f"{name}.{content_key}")
    if isinstance(role, str) and role_key == "from":
        role = SHAREGPT_ROLES.get(role, role)
    if not isinstance(role, str) or role not in ROLES:
        known = ROLES if role_key == "role" else (*SHAREGPT_ROLES, FUNCTION_CALL, *ROLES)
        raise RowFault("unknown_role", f"{name} has the role {role!r} (known: {', '.join(known)})")
    taken = (role_key, content_key)
    rest = {key: item for key, item in value.items() if key not in taken and item is not None}
    calls_only = value.get(content_key) is None and rest.get("tool_calls")
    content = "" if calls_only else value_of(value, content_key, name)
    text = _content(content, f"{name}.{content_key}")
    return {"role": role, "content": text, **checked_value(rest, name)}


def _function_call(value: Any, name: str) -> Message:
    """The assistant turn of a call written as JSON: `{"name": ..., "arguments": {...}}`, or a list of such."""
    try:
        calls = json.loads(checked_text(value, name)) if isinstance(value, str) else value
    except ValueError as error:
        raise RowFault("wrong_type", f"{name} must be a function call as JSON: {error}") from None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise RowFault(
            "wrong_type",
            f"{name} must be {{name, arguments}}, or a list of such, not {as_json(value)[:80]}",
        )
    functions = [{"name": call["name"], "arguments": call.get("arguments", {})} for call in calls]
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": checked_value(function, name)} for function in functions
        ],
    }


def _content(value: Any, name: str) -> str:
    """A message's text; a list of text parts is their concatenation."""
    if isinstance(value, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            for part in value
        ]
        if None in parts:
            raise RowFault(
                "wrong_type", f"{name} holds parts that are not text; holdfast trains on text only"
            )
        value = "".join(checked_text(part, name) for part in parts)
    return checked_text(value, name)


def checked_value(value: Any, name: str) -> Any:
    """Any JSON value, its strings valid Unicode."""
    if isinstance(value, str):
        return checked_text(value, name)
    if isinstance(value, list):
        return [checked_value(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {checked_text(key, name): checked_value(item, f"{name}.{key}") for key, item in value.items()}
    return value


def with_system(row: Row, messages: list[Message]) -> list[Message]:
    """`messages` behind the row's `system` text, if it has one."""
    system = optional_text(row, "system")
    if system is None:
        return messages
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] == system:
            return messages
        raise RowFault(
            "turn_order", "two system prompts: the key 'system' and the conversation's own; keep one"
        )
    return [{"role": "system", "content": system}, *messages]


def instruction_of(row: Row) -> list[Message]:
    """Alpaca's `instruction`, and its `input` below it where there is one, as one user turn.

    `history`, a list of [question, answer] pairs, comes before it.
    """
    parts = [text_of(row, "instruction"), optional_text(row, "input")]
    return [*_history(row), {"role": "user", "content": "\n".join(part for part in parts if part)}]


def _history(row: Row) -> list[Message]:
    turns = row.get("history") or []
    refuse_written_list(turns, "'history'")
    if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise RowFault("wrong_type", "'history' must be a list of [question, answer] pairs")
    return [
        {"role": role, "content": checked_text(text, f"'history'[{index}]")}
        for index, turn in enumerate(turns)
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def template_inputs(row: Row) -> dict[str, Any]:
    """The row's optional inputs of the chat template: `tools` and `chat_template_kwargs`."""
    kwargs = _decoded(row, "chat_template_kwargs", dict)
    if taken := not_template_inputs(kwargs or {}):
        raise RowFault("wrong_type", f"'chat_template_kwargs': {taken}")
    return {"tools": _decoded(row, "tools", list), "chat_template_kwargs": kwargs}


def not_template_inputs(kwargs: Mapping[str, Any]) -> str:
    """What is wrong with inputs of a chat template that it would never see; empty where nothing is."""
    taken = sorted(TOKENIZER_ARGUMENTS.intersection(kwargs))
    return f"'{taken[0]}' is set by what renders the row and is no input of a chat template" if taken else ""


def _decoded(row: Row, key: str, wanted: type) -> Any:
    """An optional list or object, which may be written as JSON text (columns of one type need that)."""
    value = row.get(key)
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowFault("wrong_type", f"'{key}' is a string but not JSON: {error}") from None
    if value is None or value == "":
        return None
    if not isinstance(value, wanted):
        word = "a list" if wanted is list else "an object"
        raise RowFault("wrong_type", f"'{key}' must be {word}, not {kind_of(value)}")
    return checked_value(value, f"'{key}'") or None


def number_of(row: Row, key: str) -> float | None:
    """The optional number under `key`; None where it is absent, null, empty or NaN (missing is not zero)."""
    value = row.get(key)
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RowFault("wrong_type", f"'{key}' must be a number, not {value!r:.40}") from None
    if math.isinf(number):
        raise RowFault("wrong_type", f"'{key}' must be finite, not {number}")
    return None if math.isnan(number) else number
