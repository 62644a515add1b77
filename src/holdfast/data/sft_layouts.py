"""Layouts of supervised rows: for each, how to tell a row that has it, and how the row becomes a record."""

from __future__ import annotations

from holdfast.data.messages import (
    instruction_of,
    messages_of,
    template_inputs,
    text_of,
    turns_of,
    with_system,
)
from holdfast.data.preference_layouts import is_alpaca_ranking
from holdfast.data.records import Message, Row, SFTRecord, sft_record, text_record


def is_messages(row: Row) -> bool:
    # Beside an object as the chosen side, the conversation is the prompt of a pair.
    return isinstance(row.get("messages"), list) and not isinstance(row.get("chosen"), dict)


def read_messages(row: Row, where: str) -> SFTRecord:
    """A conversation; its last turn is the completion."""
    return _conversation(row, where, messages_of(row, "messages"))


def is_sharegpt(row: Row) -> bool:
    return isinstance(row.get("conversations"), list) and "chosen" not in row


def read_sharegpt(row: Row, where: str) -> SFTRecord:
    return _conversation(row, where, messages_of(row, "conversations"))


def is_prompt_completion(row: Row) -> bool:
    return "prompt" in row and "completion" in row


def read_prompt_completion(row: Row, where: str) -> SFTRecord:
    """Strings are one turn each; a completion of several messages trains each assistant turn in it."""
    return _answered(row, where, turns_of(row, "prompt", "user"), turns_of(row, "completion", "assistant"))


def is_alpaca(row: Row) -> bool:
    return "instruction" in row and "output" in row and not is_alpaca_ranking(row)


def read_alpaca(row: Row, where: str) -> SFTRecord:
    return _answered(row, where, instruction_of(row), turns_of(row, "output", "assistant"))


def is_text(row: Row) -> bool:
    return isinstance(row.get("text"), str)


def read_text(row: Row, where: str) -> SFTRecord:
    """Raw text, trained as it stands."""
    return text_record(where, text_of(row, "text"))


def _conversation(row: Row, where: str, messages: list[Message]) -> SFTRecord:
    return _answered(row, where, messages[:-1], messages[-1:])


def _answered(row: Row, where: str, prompt: list[Message], completion: list[Message]) -> SFTRecord:
    prompt = with_system(row, prompt)
    return sft_record(where, [*prompt, *completion], len(prompt), **template_inputs(row))
