"""A page is written whole or not at all, and a template cannot leave a gap unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.reports.page import render, write_page


def test_an_interrupted_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_page(tmp_path / "page.html", "old")

    def fail(*args: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_page(path, "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("page.html", "old")]


def test_undefined_names_in_a_template_are_errors() -> None:
    with pytest.raises(Exception, match="'title' is undefined"):
        render("report.html.j2")
