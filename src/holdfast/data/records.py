"""What every row layout becomes: a preference pair or a demonstration, checked and named by its content."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from holdfast.data.faults import RowFault

Message = dict[str, Any]
Row = Mapping[str, Any]

INSTRUCTIONS = ("system", "developer")  # roles whose text is no turn to answer
# Unicode categories that show nothing: format (zero-width marks), control, space, line and paragraph separator.
INVISIBLE = ("Cf", "Cc", "Zs", "Zl", "Zp")


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """Two completions of one prompt, the first preferred.

    Attributes:
        id: hash of prompt and completions; rows of equal content share it, in any file and order.
        prompt: the conversation up to where the two sides differ.
        chosen, rejected: one assistant turn each.
        where: the place it was read from, for messages to people.
        tools, chat_template_kwargs: inputs of the chat template.
        score_chosen, score_rejected, margin: annotations, None where the row has none.
    """

    id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    where: str
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    score_chosen: float | None = None
    score_rejected: float | None = None
    margin: float | None = None

    def chosen_as_sft(self) -> SFTRecord:
        """The chosen side as a demonstration."""
        return sft_record(
            self.where, [*self.prompt, *self.chosen], len(self.prompt), self.tools, self.chat_template_kwargs
        )


@dataclass(frozen=True, slots=True)
class SFTRecord:
    """A demonstration: a conversation, or raw text.

    Attributes:
        id: hash of the conversation and of where its completion starts, or of the text.
        messages: the whole conversation; empty for raw text.
        completion_start: index of the first message of the completion.
        where: the place it was read from, for messages to people.
        tools, chat_template_kwargs: inputs of the chat template.
        text: raw text, trained as it stands without a chat template; None for conversations.
    """

    id: str
    messages: list[Message]
    completion_start: int
    where: str
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    text: str | None = None

    @property
    def prompt(self) -> list[Message]:
        """The messages before the completion."""
        return self.messages[: self.completion_start]


Record = PreferenceRecord | SFTRecord


def preference_record(
    where: str,
    prompt: list[Message],
    chosen: list[Message],
    rejected: list[Message],
    tools: list[Any] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    score_chosen: float | None = None,
    score_rejected: float | None = None,
    margin: float | None = None,
) -> PreferenceRecord:
    """Check a pair and name it.

    Raises:
        RowFault: `empty_prompt`, `empty_completion`, `equal_pair`, or `turn_order`.
    """
    for name, side in (("'chosen'", chosen), ("'rejected'", rejected)):
        _check_completion(side, name)
        if len(side) > 1:
            raise RowFault(
                "turn_order",
                f"{name} adds {len(side)} messages to the prompt; a pair differs in its last assistant "
                "turn only, earlier turns belong to the prompt",
            )
    _check_prompt(prompt)
    if _same(chosen[0], rejected[0]):
        raise RowFault("equal_pair", "'chosen' and 'rejected' are the same text, so the pair prefers nothing")
    return PreferenceRecord(
        id=content_id(prompt, chosen, rejected, tools, chat_template_kwargs),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        where=where,
        tools=tools,
        chat_template_kwargs=chat_template_kwargs,
        score_chosen=score_chosen,
        score_rejected=score_rejected,
        margin=margin,
    )


def sft_record(
    where: str,
    messages: list[Message],
    completion_start: int,
    tools: list[Any] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> SFTRecord:
    """Check a demonstration and name it.

    Raises:
        RowFault: `empty_prompt`, `empty_completion`, or `turn_order`.
    """
    _check_completion(messages[completion_start:], "the completion")
    _check_prompt(messages[:completion_start])
    if messages[-1]["role"] != "assistant":
        raise RowFault(
            "turn_order",
            f"the conversation ends with a {messages[-1]['role']} turn, which nothing answers; remove it",
        )
    return SFTRecord(
        id=content_id(messages, completion_start, tools, chat_template_kwargs),
        messages=messages,
        completion_start=completion_start,
        where=where,
        tools=tools,
        chat_template_kwargs=chat_template_kwargs,
    )


def text_record(where: str, text: str) -> SFTRecord:
    """A demonstration of raw text.

    Raises:
        RowFault: `empty_completion`.
    """
    if not visible(text):
        raise RowFault("empty_completion", "'text' is empty or holds nothing that can be seen")
    return SFTRecord(id=content_id(text), messages=[], completion_start=0, where=where, text=text)


def visible(text: str) -> str:
    """`text` without the whitespace and invisible characters around it: to compare, never to train on."""
    start, end = 0, len(text)
    while start < end and unicodedata.category(text[start]) in INVISIBLE:
        start += 1
    while start < end and unicodedata.category(text[end - 1]) in INVISIBLE:
        end -= 1
    return text[start:end]


def content_id(*parts: Any) -> str:
    """16 hexadecimal digits that name a row by its content."""
    return blake2b(canonical_json(parts).encode(), digest_size=8).hexdigest()


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: keys sorted, ASCII, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def as_row(record: Record) -> dict[str, Any]:
    """The record as a plain row, for a quarantine file; absent values are left out."""
    row = dataclasses.asdict(record)
    return {key: value for key, value in row.items() if value is not None and key != "where"}


def _check_prompt(prompt: list[Message]) -> None:
    turns = [message for message in prompt if message["role"] not in INSTRUCTIONS]
    if not any(visible(turn["content"]) for turn in turns):
        raise RowFault("empty_prompt", "there is no text to answer before the completion")
    if prompt[-1]["role"] == "assistant":
        raise RowFault(
            "turn_order", "the prompt ends with an assistant turn; it must end with the turn to answer"
        )
    if turns[-1]["role"] != "assistant" and not visible(turns[-1]["content"]):
        raise RowFault(
            "empty_prompt",
            f"the last turn before the completion ({turns[-1]['role']}) is empty, so there is nothing to answer",
        )


def _check_completion(completion: list[Message], name: str) -> None:
    if not completion:
        raise RowFault("empty_completion", f"{name} has no message after the prompt")
    if completion[0]["role"] != "assistant":
        raise RowFault(
            "turn_order", f"{name} begins with a {completion[0]['role']} turn; it must be the assistant's"
        )
    last = completion[-1]
    if last["role"] == "assistant" and not visible(last["content"]) and not last.get("tool_calls"):
        raise RowFault("empty_completion", f"{name} is empty or holds nothing that can be seen")


def _same(left: Message, right: Message) -> bool:
    """Equal but for what cannot be seen around the text; whitespace there many templates trim."""
    return left | {"content": visible(left["content"])} == right | {"content": visible(right["content"])}
