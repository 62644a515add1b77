"""The README names every verb and every page, and promises nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from holdfast.cli.main import app
from holdfast.objectives.registry import list_objectives
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
VERBS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def links(page: Path) -> set[str]:
    """Paths that a page links to, without the place within them."""
    found = re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))
    return {link for link in found if "://" not in link}


def test_every_page_is_linked_from_the_readme() -> None:
    pages = {f"docs/{page.name}" for page in PAGES if page.parent.name == "docs"}
    assert pages <= links(REPOSITORY / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in sorted(links(page)) if not (page.parent / link).exists()] == []


def test_every_verb_is_in_the_readme() -> None:
    assert set(re.findall(r"\bholdfast ([a-z]+)", README)) | {"demo"} >= VERBS  # `make demo` is its way in
    assert "make demo" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_promises_a_verb_that_there_is_not(page: Path) -> None:
    code = re.findall(r"```.*?```|`[^`]+`", page.read_text(encoding="utf-8"), re.S)
    named = {verb for text in code for verb in re.findall(r"(?m)(?:^|`|&& )holdfast ([a-z]+)", text)}
    assert named <= VERBS


def test_every_objective_is_in_the_readme() -> None:
    listed = README[README.index("On pairs:") : README.index("### Adding one")]
    assert set(list_objectives()) <= set(re.findall(r"`([a-z_]+)`", listed))
