"""Templates to pages, and pages to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from holdfast.files import replacing


def render(template: str, **values: Any) -> str:
    """A page from a template of this package. Every value is escaped unless it is marked as safe."""
    environment = Environment(
        loader=PackageLoader("holdfast", "reports/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)


def write_page(path: Path, page: str) -> Path:
    """Write a page whole or not at all: a reader never sees half of one.

    Characters that a UTF-8 page cannot hold (lone surrogates, NUL) are written as visible escapes.
    """
    content = page.replace("\x00", "\\x00").encode("utf-8", errors="backslashreplace")
    with replacing(path) as beside:
        beside.write_bytes(content)
    return path
