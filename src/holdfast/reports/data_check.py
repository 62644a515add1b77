"""What `holdfast check` found, as a page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.errors import DataError
from holdfast.reports import data_check_words as words
from holdfast.reports.page import render, write_page
from holdfast.reports.run_files import read_record

PAGE_CHARACTERS = 2000  # of a piece shown on the page


class Bar(NamedTuple):
    """One bin of a histogram: its place from the left, and its height in percent of the highest bin's."""

    place: int
    height: float
    label: str


def write_check(path: str | Path, report: words.Report | str | Path) -> Path:
    """Write a report, or the JSON file that holds one, as a page and return its path.

    Raises:
        DataError: the file cannot be read, or is no report of a check; the page cannot be written.
    """
    if isinstance(report, Mapping):
        report = words.harmless(report)
    else:
        report = words.harmless(read_record(Path(report)), str(report))
    unit = report["unit"]
    page = render(
        "data_check.html.j2",
        report=report,
        verdict=words.verdict(report),
        facts=words.facts(report),
        rows=words.rows(report),
        refused=words.refused(report),
        unlisted=words.unlisted(report, len(report["problems"])),
        lengths=[
            (side, f"{', '.join(words.length_words(found))} {unit}", bars(found, unit), words.axis(found))
            for side, found in report["lengths"].items()
        ],
        cuts=words.cuts(report),
        cut_notes=words.cut_notes(report),
        findings=words.findings(report),
        examples=[(one["where"], words.example_sides(one, PAGE_CHARACTERS)) for one in report["examples"]],
        ways_on=words.ways_on(report),
    )
    try:
        return write_page(Path(path), page)
    except OSError as error:
        raise DataError(f"cannot write the page '{path}': {error.strerror}") from error


def bars(found: Mapping[str, Any], unit: str) -> list[Bar]:
    """The bins of a histogram, in their order; one that is not empty can always be seen."""
    edges, counts = found["edges"], found["counts"]
    highest = max(counts, default=0) or 1
    return [
        Bar(
            place,
            round(max(1 if rows else 0, 100 * rows / highest), 2),
            f"{low:,} to {high:,} {unit}: {words.count(rows, 'row')}",
        )
        for place, (low, high, rows) in enumerate(zip(edges[:-1], edges[1:], counts, strict=True))
    ]
