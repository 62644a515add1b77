"""What `holdfast probe` found, as a page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.errors import DataError
from holdfast.reports import probe_words as words
from holdfast.reports.data_check import Bar
from holdfast.reports.page import render, write_page
from holdfast.reports.run_files import read_record

BINS = 50  # of the page's histograms


class Point(NamedTuple):
    """A group's mean with its interval, in percent of the figure's height from the top."""

    place: int
    mean: float
    low: float
    high: float
    label: str


def write_probe(path: str | Path, report: words.Report | str | Path) -> Path:
    """Write a report, or the JSON file that holds one, as a page and return its path.

    Raises:
        DataError: the file cannot be read, or is no report of a probe; the page cannot be written.
    """
    if isinstance(report, Mapping):
        report = words.harmless(report)
    else:
        report = words.harmless(read_record(Path(report)), str(report))
    histograms = [("all target tokens", bars(report["every"]))]
    if report["informative"] is not None:
        histograms.append(("tokens that carry information", bars(report["informative"])))
    groups = [
        (title, points(found), points(found, "informative_mean_probability"), words.places(found))
        for title, found in (
            ("By number in the answer", report["by_index"]),
            ("By quarter of the answer", report["by_part"]),
        )
        if found
    ]
    page = render(
        "probe.html.j2",
        report=report,
        title=f"{report['probed']['model']} on {report['probed']['data']}",
        verdict=words.verdict(report),
        facts=words.facts(report),
        explanation=words.explanation(),
        objective=words.objective(report),
        lines=words.lines(report),
        histograms=histograms,
        groups=groups,
        sources=words.places(report["by_source"]),
        hardest=words.hardest(report),
        trials=words.trials(report),
        criteria=list(words.CRITERIA.values()),
        pilot_facts=words.pilot_facts(report) if report["pilot"] else "",
        winners=words.winners(report) if report["pilot"] else [],
    )
    try:
        return write_page(Path(path), page)
    except OSError as error:
        raise DataError(f"cannot write the page '{path}': {error.strerror}") from error


def bars(summary: Mapping[str, Any]) -> list[Bar]:
    """The histogram of p; a bin that is not empty can always be seen."""
    counts = words.histogram(summary, BINS)
    highest = max(counts) or 1
    return [
        Bar(
            place,
            round(max(1 if tokens else 0, 100 * tokens / highest), 2),
            f"p from {place / BINS:.2f} to {(place + 1) / BINS:.2f}: {words.count(tokens, 'token')}",
        )
        for place, tokens in enumerate(counts)
    ]


def points(groups: Sequence[Mapping[str, Any]], key: str = "mean_probability") -> list[Point]:
    """Each group's mean p as a point; a group that has none leaves a gap."""
    found = []
    for place, group in enumerate(groups):
        estimate = group[key]
        if estimate["value"] is None:
            continue
        bounds = [
            estimate["value"] if estimate[bound] is None else estimate[bound] for bound in ("low", "high")
        ]
        mean, low, high = (round(100 * (1 - value), 2) for value in (estimate["value"], *bounds))
        found.append(Point(place, mean, low, high, f"{group['name']}: {words.interval(estimate)}"))
    return found
