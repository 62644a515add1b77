"""Texts of rows, shown harmlessly: what a terminal or a page would obey or hide is written as an escape."""

from __future__ import annotations

import unicodedata

HIDING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, bidi and other format characters, surrogates, line breaks
JOINERS = "\u200c\u200d"  # format characters that scripts and emoji need


def visible(text: str, keep: str = "") -> str:
    """The text with escapes (`\\x1b`, `\\u202e`) for such characters, but for those in `keep`."""
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in HIDING and character not in keep + JOINERS
        else character
        for character in text
    )
