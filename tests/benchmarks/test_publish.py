"""The marked part of a page, and charts' input."""

from __future__ import annotations

from pathlib import Path

import pytest

import publish


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_only_the_marked_part_is_replaced(tmp_path: Path) -> None:
    path = page(tmp_path, "before\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\nkept\n<!-- /b -->\n")
    publish.fill(path, "a", r"a \1 table")
    text = "before\n<!-- a -->\n\na \\1 table\n\n<!-- /a -->\nbetween\n<!-- b -->\nkept\n<!-- /b -->\n"
    assert path.read_text(encoding="utf-8") == text
    publish.fill(path, "a", r"a \1 table")
    assert path.read_text(encoding="utf-8") == text  # again changes nothing


@pytest.mark.parametrize("text", ["no marks\n", "<!-- a -->\nno end\n", 2 * "<!-- a -->\n<!-- /a -->\n"])
def test_a_page_without_one_pair_of_marks_is_refused(tmp_path: Path, text: str) -> None:
    path = page(tmp_path, text)
    with pytest.raises(ValueError, match="must have the marks <!-- a --> and <!-- /a --> once"):
        publish.fill(path, "a", "table")


def test_markdown_table() -> None:
    table = publish.markdown_table(["form", "n"], [["plain", "1"]])
    assert table == "| form | n |\n| --- | --- |\n| plain | 1 |"
