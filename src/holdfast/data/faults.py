"""Why a row cannot be used: machine-readable reasons, and what carries them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from holdfast.errors import DataError

Reason = Literal[
    "unparsable_json",  # the line is not JSON
    "invalid_text",  # bytes that are not UTF-8, or a lone surrogate in a string
    "wrong_type",  # a value is not what its key promises, or a key has two
    "missing_key",  # a key the layout needs is absent
    "unknown_role",  # a message's role is none that chat templates know
    "turn_order",  # the completion is not one assistant turn behind the prompt's last turn
    "empty_prompt",  # nothing to answer
    "empty_completion",  # nothing to learn: empty, or nothing that can be seen
    "equal_pair",  # chosen and rejected are the same
    "template",  # the chat template or tokenizer does not give trainable tokens
    "vocabulary",  # a token id the model has no embedding for
    "too_long",  # over max_length, where that is to be an error
]
REASONS: tuple[Reason, ...] = get_args(Reason)

# What must hold of a chat template to train on what it renders.
TemplateProperty = Literal[
    "prompt_is_prefix",
    "one_bos",
    "prompt_is_rendered",
    "completion_is_rendered",
    "end_is_trained",
    "completion_has_tokens",
]

EXCERPT = 200  # characters of a row shown in messages
DEEPEST = 100  # levels a row may nest: far more than any data needs, far fewer than Python's own limit
LONGEST_DETAIL = (
    1200  # characters of what is wrong with a row: a key, or what a template says, can be any length
)
LARGEST_INTEGER = 1024  # bits; beyond, an integer is written in hexadecimal, which takes no time to convert


class RowFault(DataError):
    """One row cannot be used.

    Attributes:
        where: the place, as `rows.jsonl:17` or `rows.json row 17`; lines and rows are counted from 1.
        reason: one of `REASONS`.
        detail: what is wrong, naming the key, and what to do.
        check: the property of the chat template that does not hold; None for faults of another kind.
    """

    def __init__(
        self, reason: Reason, detail: str, where: str = "", *, check: TemplateProperty | None = None
    ) -> None:
        detail = shortened(detail)
        super().__init__(f"{where + ': ' if where else ''}{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail
        self.where = where
        self.check = check

    def at(self, where: str) -> RowFault:
        """The same fault, with its place."""
        return RowFault(self.reason, self.detail, where, check=self.check)

    def problem(self, row: Any) -> Problem:
        """The fault with the row it is of."""
        return Problem(self.where, self.reason, self.detail, row, self.check)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands in a stream of rows for a row that could not be read; the rows around it survive."""

    reason: Reason
    detail: str
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A row set aside: its place, the reason, and the row itself for the quarantine."""

    where: str
    reason: Reason
    detail: str
    row: Any
    check: TemplateProperty | None = None

    @property
    def row_excerpt(self) -> str:
        """The row's beginning as printable text. What could not be read is shown as it stood."""
        text = self.row if isinstance(self.row, str) else as_json(self.row)
        shown = printable(text[: EXCERPT + 1])
        return shown if len(shown) <= EXCERPT else shown[: EXCERPT - 1] + "…"

    def as_json(self) -> str:
        """One line of `quarantine.jsonl`. Pure ASCII, so that lone surrogates survive writing and reading."""
        return as_json({"where": self.where, "reason": self.reason, "detail": self.detail, "row": self.row})

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}: {self.detail}"


def as_json(value: Any) -> str:
    """ASCII JSON of any value; what JSON has no form for (dates, bytes, NaN) is written as its text."""
    try:
        return json.dumps(value, default=str, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return json.dumps(_writable(value), default=str)


def _writable(value: Any, depth: int = 0) -> Any:
    """`value` without what JSON cannot hold: NaN, infinities, integers without end, keys that are no strings.

    What lies deeper than `DEEPEST` is left out.
    """
    if isinstance(value, (dict, list, tuple)) and depth == DEEPEST:
        return "…"
    if isinstance(value, dict):
        return {str(key): _writable(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > LARGEST_INTEGER:
        return hex(value)
    return value


def shortened(text: str, most: int = LONGEST_DETAIL) -> str:
    """`text` without its middle where it is longer: what is wrong stands at its beginning, what to do at its end."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[-most // 3 :]}"


def printable(text: str) -> str:
    """`text` with everything escaped that a terminal obeys or cannot show: controls, bidi marks, surrogates."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown(path: Path | str) -> str:
    """A path for messages and records: a name may hold what a terminal obeys, or what is not UTF-8."""
    return printable(str(path))


def names_of(keys: Iterable[Any]) -> str:
    """Keys as a printable list, the first twenty of them."""
    names = [repr(str(key))[1:-1] for key in keys]
    return ", ".join([*names[:20], *(["..."] if len(names) > 20 else [])]) or "none"


def kind_of(value: Any) -> str:
    """A JSON reader's word for a value's type: what messages call it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    for types, word in (((int, float), "a number"), (str, "a string"), (list, "a list"), (dict, "an object")):
        if isinstance(value, types):
            return word
    return f"a {type(value).__name__}"
