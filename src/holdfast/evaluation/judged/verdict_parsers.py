"""A judge's reply -> its verdict: the parsers of the original tools to the bit, and a strict one beside each.

The original ones take what they find. A reply may hold several verdicts, one quoted from the answer it judges, or one
out of the scale; `strict` then gives no verdict, with the reason. See docs/evaluation.md for each difference.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

# --- MT-Bench ------------------------------------------------------------------------------------------

_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_RATING_BACKUP = re.compile(r"\[(\d+\.?\d*)\]")
UNPARSED = -1  # FastChat's score of a reply without a rating; its mean leaves such rows out

LARGEST = 2**64  # what FastChat's JSON reader holds
LOWEST, HIGHEST = 1, 10  # the scale that the judge is given


@dataclass(frozen=True)
class Verdict(Generic[T]):
    """A verdict, or None and the reason for none."""

    value: T | None
    reason: str = ""


def fastchat_rating(text: str) -> int | float:
    """The first `[[n]]`, else the first `[n]`, else -1, as FastChat has it; neither end of the scale is looked at.

    A number that is no Python literal (`[[08]]`, digits of other scripts, thousands of digits), or beyond what its
    table of scores holds, stops FastChat with an error; here it is -1.
    """
    match = _RATING.search(text) or _RATING_BACKUP.search(text)
    if match is None:
        return UNPARSED
    try:
        rating: int | float = ast.literal_eval(match[1])
    except (SyntaxError, ValueError, MemoryError):
        return UNPARSED
    return rating if rating < LARGEST else UNPARSED


def strict_rating(text: str) -> Verdict[float]:
    """The one rating in double brackets, from 1 to 10, that the reply's end gives."""
    found = _RATING.findall(text)
    if not found:
        single = _RATING_BACKUP.search(text)
        return Verdict(None, "only a number in single brackets" if single else "no rating in double brackets")
    values = {_number(one) for one in found}
    if len(values) > 1:
        return Verdict(None, f"{len(found)} ratings that differ")
    (value,) = values
    if value is None or not LOWEST <= value <= HIGHEST:
        return Verdict(None, f"a rating outside {LOWEST} to {HIGHEST}")
    return Verdict(value)


def _number(digits: str) -> float | None:
    """The number; None for digits that are not ASCII, and for more of them than a rating has."""
    return float(digits) if digits.isascii() and len(digits) <= 8 else None


# --- Arena-Hard ----------------------------------------------------------------------------------------

_LABEL = re.compile(r"\[\[([AB<>=]+)\]\]")
_LABEL_BACKUP = re.compile(r"\[([AB<>=]+)\]")

# What a label gives assistant A; more than one entry where a clear win counts as several rows. The second half are
# mirrored spellings that the current tool takes besides.
WEIGHT = 3
LABEL_POINTS: dict[str, list[float]] = {
    "A>B": [1.0],
    "A>>B": [1.0] * WEIGHT,
    "A=B": [0.5],
    "A<<B": [0.0] * WEIGHT,
    "A<B": [0.0],
    "B>A": [0.0],
    "B>>A": [0.0] * WEIGHT,
    "B=A": [0.5],
    "B<<A": [1.0] * WEIGHT,
    "B<A": [1.0],
}
LABELS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")  # that the judge is offered


def arena_label(text: str) -> str | None:
    """The current Arena-Hard: upper-cased, the last label in double brackets, else the last in single ones.

    Whatever of `AB<>=` stands in the brackets is a label here, `[[AB]]` too; scoring sees whether it is one.
    """
    upper = text.upper()
    for pattern in (_LABEL, _LABEL_BACKUP):
        found = pattern.findall(upper)
        if found:
            return str(found[-1])
    return None


def arena_label_v01(text: str) -> tuple[str | None, bool]:
    """The original Arena-Hard v0.1: (label, whether to ask the judge to go on).

    Exactly one distinct label in double brackets, as written. None at all: ask once more. Several: none, and no more.
    """
    found = set(_LABEL.findall(text))
    if not found:
        return None, True
    return (found.pop(), False) if len(found) == 1 else (None, False)


def strict_label(text: str) -> Verdict[str]:
    """The one label in double brackets, of the five that the judge was offered."""
    found = _LABEL.findall(text)
    if not found:
        loose = _LABEL_BACKUP.search(text.upper()) or _LABEL.search(text.upper())
        return Verdict(None, "only a label written otherwise" if loose else "no label in double brackets")
    if len(set(found)) > 1:
        return Verdict(None, f"{len(set(found))} labels that differ")
    if found[0] not in LABELS:
        return Verdict(None, "a label that was not offered")
    return Verdict(found[0])
