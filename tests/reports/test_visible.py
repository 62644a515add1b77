"""What a terminal would obey, or no one would see, is written out."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.reports.visible import visible

# Controls, soft hyphen, zero-width and bidi characters, line separators, byte order mark, surrogates.
HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u200b\u200e-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("\udc80", "\\udc80"),
        ("\u202etxt", "\\u202etxt"),
        ("\U000e0041", "\\U000e0041"),  # an invisible tag character
        ("two\nlines", "two\\nlines"),
        ("[bold]é 日本 👩\u200d👩\u200d👧", "[bold]é 日本 👩\u200d👩\u200d👧"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_kept_characters_stay() -> None:
    assert visible("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"


@given(st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "L", "P"])))
def test_nothing_harmful_is_left_and_nothing_else_is_touched(text: str) -> None:
    assert not HARMFUL.search(visible(text))
    if text.isprintable():
        assert visible(text) == text
