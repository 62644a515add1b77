"""Verdicts out of replies: the original tools' readings, and where the strict ones differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.evaluation.judged.verdict_parsers import (
    LABEL_POINTS,
    LABELS,
    arena_label,
    arena_label_v01,
    fastchat_rating,
    strict_label,
    strict_rating,
)


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("Rating: [[7]]", 7, 7.0),
        ("Rating: [[7.5]]", 7.5, 7.5),
        ("[[3]] on style, [[9]] in all", 3, None),  # the first one
        ("[[9]] ... so once more: [[9]]", 9, 9.0),
        ("[2] sources, but [[8]]", 8, 8.0),  # double brackets go first
        ("Rating: [6]", 6, None),
        ("see [1], Rating: [6]", 1, None),
        ("Rating: 7", -1, None),
        ("Rating: [[rating]]", -1, None),
        ("Rating: [[-3]]", -1, None),
        ("Rating: [[11]]", 11, None),  # no end of the scale
        ("Rating: [[0]]", 0, None),
        ("Rating: [[7/10]]", -1, None),
        ("Rating: [[ 7 ]]", -1, None),
        ("Rating: [[7.]]", 7.0, 7.0),
        ("Rating: [[[7]]]", 7, 7.0),
        ("Rating: [[08]]", -1, 8.0),  # no literal of Python's
        ("Rating: [[٣]]", -1, None),
        (f"[[{'9' * 5000}]]", -1, None),
        (f"[[{'9' * 500}]]", -1, None),
        (f"[[{'9' * 500}.]]", -1, None),
        ("", -1, None),
    ],
)
def test_ratings(text: str, official: float, strict: float | None) -> None:
    assert fastchat_rating(text) == official
    assert type(fastchat_rating(text)) is type(official)
    verdict = strict_rating(text)
    assert verdict.value == strict
    assert (verdict.reason == "") == (strict is not None)


@pytest.mark.parametrize(
    ("text", "current", "original", "strict"),
    [
        ("My final verdict is tie: [[A=B]]", "A=B", ("A=B", False), "A=B"),
        ("[[A>B]] ... no: [[B>A]]", "B>A", (None, False), None),  # the last, or none
        ("[[A>>B]] and so [[A>>B]]", "A>>B", ("A>>B", False), "A>>B"),
        ("[[b>a]]", "B>A", (None, True), None),
        ("[A>B]", "A>B", (None, True), None),
        ("[A>B] but [[B>A]]", "B>A", ("B>A", False), "B>A"),
        ("[[B=A]]", "B=A", ("B=A", False), None),  # not offered
        ("[[AB]]", "AB", ("AB", False), None),
        ("[[]] nothing", None, (None, True), None),
        ("", None, (None, True), None),
    ],
)
def test_labels(
    text: str, current: str | None, original: tuple[str | None, bool], strict: str | None
) -> None:
    assert arena_label(text) == current
    assert arena_label_v01(text) == original
    verdict = strict_label(text)
    assert verdict.value == strict
    assert (verdict.reason == "") == (strict is not None)


def test_points_mirror_each_other() -> None:
    for label, points in LABEL_POINTS.items():
        swapped = label.translate(str.maketrans("AB", "BA"))
        assert LABEL_POINTS[swapped] == [1 - point for point in points]
    assert [len(LABEL_POINTS[label]) for label in LABELS] == [3, 1, 1, 1, 3]


@given(st.text(alphabet="[]AB<>=0123456789. a\n\x00‮", max_size=60))
def test_no_reply_breaks_a_parser_and_strict_agrees_where_it_reads(text: str) -> None:
    rating = strict_rating(text)
    if rating.value is not None and f"[[0{rating.value:g}" not in text:
        assert fastchat_rating(text) in (rating.value, -1)
    label = strict_label(text)
    if label.value is not None:
        assert arena_label(text) is not None
        assert arena_label_v01(text) == (label.value, False)
