"""Layouts of preference rows: for each, how to tell a row that has it, and how the row becomes a record."""

from __future__ import annotations

import re
from typing import Any

from holdfast.data.faults import RowFault
from holdfast.data.messages import (
    instruction_of,
    messages_of,
    number_of,
    template_inputs,
    text_of,
    turns_of,
    with_system,
)
from holdfast.data.records import Message, PreferenceRecord, Row, preference_record


def is_text(row: Row) -> bool:
    return "prompt" in row and _are(row, str, "chosen", "rejected")


def is_messages(row: Row) -> bool:
    return "prompt" in row and _are(row, list, "chosen", "rejected")


def read_explicit(row: Row, where: str) -> PreferenceRecord:
    """A prompt and its two completions, each a string (one turn) or a list of messages."""
    return _two_completions(row, where, turns_of(row, "prompt", "user"))


def is_sharegpt(row: Row) -> bool:
    return _are(row, list, "conversations") and _are(row, dict, "chosen", "rejected")


def read_sharegpt(row: Row, where: str) -> PreferenceRecord:
    return _two_completions(row, where, messages_of(row, "conversations"))


def is_alpaca(row: Row) -> bool:
    return _are(row, str, "instruction", "chosen", "rejected")


def read_alpaca(row: Row, where: str) -> PreferenceRecord:
    return _two_completions(row, where, instruction_of(row))


def is_implicit(row: Row) -> bool:
    return _opens_with_prompt(row.get("chosen")) and _opens_with_prompt(row.get("rejected"))


def read_implicit(row: Row, where: str) -> PreferenceRecord:
    """Whole conversations that share all but their last turn. A `prompt` key only repeats what they hold."""
    return _split_conversations(row, where, messages_of(row, "chosen"), messages_of(row, "rejected"))


def is_hh_rlhf(row: Row) -> bool:
    sides = ("chosen", "rejected")
    return _are(row, str, *sides) and all(row[side].startswith("\n\nHuman:") for side in sides)


def read_hh_rlhf(row: Row, where: str) -> PreferenceRecord:
    """Dialogues as one string each, a turn marked by a blank line and `Human:` or `Assistant:`."""
    return _split_conversations(row, where, _hh_turns(row, "chosen"), _hh_turns(row, "rejected"))


_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def _hh_turns(row: Row, key: str) -> list[Message]:
    before, *marks_and_texts = _HH_TURN.split(text_of(row, key))
    if before.strip() or not marks_and_texts:
        raise RowFault(
            "wrong_type", f"'{key}' must begin with a blank line and `Human:`, not with {before[:40]!r}"
        )
    marks, texts = marks_and_texts[::2], marks_and_texts[1::2]
    return [{"role": _HH_ROLES[m], "content": text.strip()} for m, text in zip(marks, texts, strict=True)]


def _split_conversations(
    row: Row, where: str, chosen: list[Message], rejected: list[Message]
) -> PreferenceRecord:
    """Two conversations that share all but their last turn -> their prompt and the two turns."""
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side:
            raise RowFault("empty_completion", f"'{name}' holds no turns")
    prompt = chosen[:-1]
    if prompt != rejected[:-1]:
        pairs = zip(chosen, rejected, strict=False)
        shared = next(
            (n for n, (left, right) in enumerate(pairs) if left != right), min(len(chosen), len(rejected))
        )
        raise RowFault(
            "turn_order",
            f"'chosen' ({len(chosen)} turns) and 'rejected' ({len(rejected)}) share {shared} turns; "
            "they must share all but the last turn of each",
        )
    return pair_of(row, where, prompt, chosen[-1:], rejected[-1:])


def _two_completions(row: Row, where: str, prompt: list[Message]) -> PreferenceRecord:
    return pair_of(
        row, where, prompt, turns_of(row, "chosen", "assistant"), turns_of(row, "rejected", "assistant")
    )


def pair_of(
    row: Row, where: str, prompt: list[Message], chosen: list[Message], rejected: list[Message]
) -> PreferenceRecord:
    """The pair, with the row's own system text, template inputs and annotations."""
    return preference_record(
        where,
        with_system(row, prompt),
        chosen,
        rejected,
        **template_inputs(row),
        score_chosen=number_of(row, "score_chosen"),
        score_rejected=number_of(row, "score_rejected"),
        margin=number_of(row, "margin"),
    )


def _are(row: Row, kind: type, *keys: str) -> bool:
    return all(isinstance(row.get(key), kind) for key in keys)


def _opens_with_prompt(conversation: Any) -> bool:
    """A list of messages that begins before the assistant's turn."""
    first = conversation[0] if isinstance(conversation, list) and conversation else None
    return isinstance(first, dict) and first.get("role", first.get("from")) not in ("assistant", "gpt", None)
