"""An evaluation's `results.json`, or two of them compared, in words: for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NONE = "—"


def number(value: Any, digits: int = 3) -> str:
    """A score's digits; a dash for one that is not there."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NONE
    return f"{value:.{digits}f}".replace("-", "−")


def bounds(score: Mapping[str, Any]) -> str:
    """`5.812 to 6.437 (95 %)`; empty without an interval."""
    interval = score.get("interval")
    if not interval:
        return ""
    return f"{number(interval['low'])} to {number(interval['high'])} ({100 * interval['level']:.0f} %)"


def headline(found: Mapping[str, Any]) -> str:
    """The name, the model and the first score; or why there is none."""
    score = found["scores"][0]
    if score["value"] is None:
        return f"{found['model']}, {found['name']}: no score, {score['note']}"
    interval = bounds(score)
    rate = found["missing"].get("rate")
    missing = "" if rate is None else f"; {100 * rate:.1f} % missing or unread"
    value = number(score["value"])
    return f"{found['model']}, {score['name']}: {value}{f', {interval}' if interval else ''}{missing}"


def score_lines(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a score."""
    lines = []
    for score in scores:
        parts = [f"{score['name']}: {number(score['value'])}", bounds(score)]
        if score["n"]:
            parts.append(
                f"n {score['n']:,} of {score['clusters']:,} questions"
                if score["clusters"]
                else f"n {score['n']:,}"
            )
        lines.append(
            ", ".join(part for part in parts if part) + (f" ({score['note']})" if score["note"] else "")
        )
    return lines


def missing_lines(missing: Mapping[str, Any], listed: int) -> list[str]:
    """A line for every kind of oddity that there is, with the first few named."""
    lines = []
    for key, value in flat(missing):
        if key == "rate" or not isinstance(value, list | dict) or not value:
            continue
        names = [f"{name} ({reason})" for name, reason in value.items()] if isinstance(value, dict) else value
        more = f" and {len(names) - listed} more" if len(names) > listed else ""
        lines.append(f"{key.replace('_', ' ')}: {len(names)}: {'; '.join(map(str, names[:listed]))}{more}")
    return lines


def cut_lines(found: Mapping[str, Any]) -> list[str]:
    """Of judgments that ended at the limit of tokens, where there are any."""
    judge = found["judge"] or {}
    cut, empty = (judge.get(key) or 0 for key in ("cut_replies", "cut_empty_replies"))
    if not cut:
        return []
    without = f", {empty} of them without any text" if empty else ""
    return [
        f"judgments cut at the judge's max_tokens: {cut}{without}; they are not asked again: another limit "
        "(--judge-extra) asks for all anew"
    ]


def flat(missing: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name, list or reasons by name); an answer file's lists come one by one, under its name."""
    found = []
    for key, value in missing.items():
        nested = isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values())
        found += [(f"{key} {inner}", v) for inner, v in value.items()] if nested else [(key, value)]
    return found


def comparison(found: Mapping[str, Any]) -> list[str]:
    """Two evaluations compared, line by line; the first is the verdict."""
    lines = [
        f"{found['second']} against {found['first']}, {found['name']}: "
        + (
            "no comparison, a score is missing"
            if found["difference"] is None
            else paired(found["difference"])
        ),
        *found["withheld"],
    ]
    if found["strict"] is not None:
        lines.append(f"by the strict parser: {paired(found['strict'])}")
    lines += [
        ("" if found["difference"] else "of the questions that both have: ")
        + f"{found['better']} better, {found['worse']} worse, {found['same']} the same",
        *found["advice"],
    ]
    if found["unpaired"]:
        lines.append(f"left out, without a score or a turn in one of the two: {len(found['unpaired'])}")
    if found["not_alike"]:
        lines.append("not of the models alone, perhaps: " + "; ".join(found["not_alike"]))
    return lines


def paired(difference: Mapping[str, Any]) -> str:
    """`+0.250, 0.100 to 0.400 (95 %), 80 questions paired`."""
    interval = bounds(difference)
    return f"{signed(difference['value'])}{f', {interval}' if interval else ''}, {difference['n']} questions paired"


def signed(value: float) -> str:
    """A difference with its sign."""
    return ("+" if value > 0 else "") + number(value)
