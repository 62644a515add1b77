"""Layouts of preference rows: for each, how to tell a row that has it, and how the row becomes a record."""

from __future__ import annotations

import re
from typing import Any

from holdfast.data.faults import RowFault, kind_of
from holdfast.data.messages import (
    instruction_of,
    messages_of,
    number_of,
    template_inputs,
    text_of,
    turns_of,
    value_of,
    with_system,
)
from holdfast.data.records import Message, PreferenceRecord, Row, preference_record


def is_text(row: Row) -> bool:
    return "prompt" in row and _are(row, str, "chosen", "rejected") and not is_hh_prompt(row)


def is_messages(row: Row) -> bool:
    return "prompt" in row and _are(row, list, "chosen", "rejected")


def read_explicit(row: Row, where: str) -> PreferenceRecord:
    """A prompt and its two completions, each a string (one turn) or a list of messages."""
    return _two_completions(row, where, turns_of(row, "prompt", "user"))


def is_sharegpt(row: Row) -> bool:
    return _are(row, list, "conversations") and _are(row, dict, "chosen", "rejected")


def read_sharegpt(row: Row, where: str) -> PreferenceRecord:
    return _two_completions(row, where, messages_of(row, "conversations"))


def is_openai(row: Row) -> bool:
    return _are(row, list, "messages") and _are(row, dict, "chosen", "rejected")


def read_openai(row: Row, where: str) -> PreferenceRecord:
    """LLaMA-Factory's ranking rows in OpenAI's words: a conversation, and one message for each side."""
    return _two_completions(row, where, messages_of(row, "messages"))


def is_alpaca_ranking(row: Row) -> bool:
    outputs = row.get("output")
    return (
        _are(row, str, "instruction")
        and isinstance(outputs, list)
        and bool(outputs)
        and all(isinstance(output, str) for output in outputs)
    )


def read_alpaca_ranking(row: Row, where: str) -> PreferenceRecord:
    """LLaMA-Factory's older ranking rows: `output` is the good answer and the bad one."""
    outputs = value_of(row, "output")
    if not isinstance(outputs, list) or len(outputs) != 2:
        found = f"of {len(outputs)}" if isinstance(outputs, list) else f"but {kind_of(outputs)}"
        raise RowFault("wrong_type", f"'output' must be a list of two answers, the better first, not {found}")
    sides = dict(zip(("chosen", "rejected"), outputs, strict=True))
    return _two_completions({**row, **sides}, where, instruction_of(row))


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
    chosen, rejected = _hh_side(row, "chosen"), _hh_side(row, "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise RowFault("turn_order", _hh_difference(chosen, rejected))
    return pair_of(row, where, chosen[:-1], chosen[-1:], rejected[-1:])


def is_hh_prompt(row: Row) -> bool:
    return _are(row, str, "prompt", "chosen", "rejected") and row["prompt"].startswith("\n\nHuman:")


def read_hh_prompt(row: Row, where: str) -> PreferenceRecord:
    """A transcript as the prompt, and the two answers to it (Dahoas/rm-static)."""
    prompt = _hh_turns(row, "prompt")
    if prompt[-1]["role"] == "assistant":
        if prompt[-1]["content"]:
            raise RowFault(
                "turn_order",
                "'prompt' ends with an `Assistant:` turn that has text; end it with a bare `Assistant:`, and "
                "put the whole answer into 'chosen' and 'rejected'",
            )
        prompt = prompt[:-1]
    return pair_of(row, where, prompt, _hh_answer(row, "chosen"), _hh_answer(row, "rejected"))


_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_HH_MARKS = {role: f"`{mark}:`" for mark, role in _HH_ROLES.items()}


def _hh_turns(row: Row, key: str) -> list[Message]:
    before, *marks_and_texts = _HH_TURN.split(text_of(row, key))
    if before.strip() or not marks_and_texts:
        raise RowFault(
            "wrong_type", f"'{key}' must begin with a blank line and `Human:`, not with {before[:40]!r}"
        )
    marks, texts = marks_and_texts[::2], marks_and_texts[1::2]
    return [{"role": _HH_ROLES[m], "content": text.strip()} for m, text in zip(marks, texts, strict=True)]


def _hh_side(row: Row, key: str) -> list[Message]:
    """The turns of a transcript that ends with one answer."""
    turns = _hh_turns(row, key)
    if turns[-1]["role"] != "assistant":
        raise RowFault(
            "turn_order",
            f"'{key}' ends with a `Human:` turn ({turns[-1]['content'][:40]!r}), which nothing answers; take "
            "that turn off, or the row out",
        )
    if len(turns) > 1 and turns[-2]["role"] == "assistant":
        raise RowFault(
            "turn_order",
            f"'{key}' ends with two `Assistant:` turns, the last {turns[-1]['content'][:40]!r}; where the marker "
            "belongs to the answer's text, write it without the blank line before it",
        )
    return turns


def _hh_answer(row: Row, key: str) -> list[Message]:
    """The one turn of an answer that stands without its transcript."""
    text = text_of(row, key).removeprefix("\n\nAssistant:")
    mark = _HH_TURN.search(text)
    if mark is not None:
        raise RowFault(
            "turn_order",
            f"'{key}' holds a further `{mark[1]}:` turn behind its answer; cut it off there, or write the marker "
            "without the blank line before it where it belongs to the answer's text",
        )
    return [{"role": "assistant", "content": text.strip()}]


def _hh_difference(chosen: list[Message], rejected: list[Message]) -> str:
    """Where two transcripts part too early, in words."""
    pairs = enumerate(zip(chosen[:-1], rejected[:-1], strict=False), start=1)
    parted = next(((turn, left, right) for turn, (left, right) in pairs if left != right), None)
    if parted is None:
        found = f"'chosen' has {len(chosen)} turns and 'rejected' {len(rejected)}"
    else:
        turn, left, right = parted
        shown = " and ".join(
            f"'{key}' has {_HH_MARKS[message['role']]} {message['content'][:40]!r}"
            for key, message in (("chosen", left), ("rejected", right))
        )
        found = f"turn {turn} differs: {shown}"
    return (
        f"{found}; both transcripts must be the same up to their last `Assistant:`, or the row be taken out"
    )


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
