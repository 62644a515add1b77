"""Messages and pairs, and what becomes of them with a tokenizer: their tokens, or the one problem."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from holdfast.data.chat import EncodedPair, LengthRule, encode_pairs
from holdfast.data.faults import Problem
from holdfast.data.records import PreferenceRecord, preference_record
from holdfast.data.validation import InvalidRows

ANY_LENGTH = LengthRule(None)
BOS = {"bos": "<s>", "adds_bos": True}
ASSISTANT = "m['role'] == 'assistant'"


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def user(content: str) -> dict[str, str]:
    return message("user", content)


def assistant(content: str) -> dict[str, str]:
    return message("assistant", content)


def pair(prompt: str = "Hi", chosen: str = "yes", rejected: str = "no", **options: Any) -> PreferenceRecord:
    return preference_record(
        "rows.jsonl:7", [user(prompt)], [assistant(chosen)], [assistant(rejected)], **options
    )


def chat(*turns: str, answers: tuple[str, str] = ("yes", "no")) -> PreferenceRecord:
    """A pair whose prompt is these turns, each written as its role and its text."""
    chosen, rejected = ([assistant(answer)] for answer in answers)
    return preference_record("rows.jsonl:7", [message(*t.split(" ", 1)) for t in turns], chosen, rejected)


def encode(record: PreferenceRecord, tokenizer: PreTrainedTokenizerFast, **options: Any) -> EncodedPair:
    (encoded,), _ = encode_pairs([record], tokenizer, ANY_LENGTH, **options)
    return encoded


def fault(record: PreferenceRecord, tokenizer: PreTrainedTokenizerFast, **options: Any) -> Problem:
    """The one problem of a pair that must not be encodable."""
    with pytest.raises(InvalidRows) as error:
        encode_pairs([record], tokenizer, ANY_LENGTH, **options)
    (problem,) = error.value.problems
    assert problem.where == "rows.jsonl:7"
    return problem
