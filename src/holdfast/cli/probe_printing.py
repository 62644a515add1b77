"""A probe's report on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.cli.check import ASCII, UNICODE, axis_line, histogram_lines
from holdfast.reports import probe_words as words

HISTOGRAM_ROOM = 2  # columns of the terminal a bin takes


def render_probe(report: Mapping[str, Any], console: Console) -> None:
    """Print a report (`CapabilityReport.to_dict()`); texts of rows are shown harmlessly.

    Raises:
        DataError: the mapping is no report of a probe.
    """
    report = words.harmless(report)
    console.print(Text(words.verdict(report), "bold"))
    console.print(
        Text(f"{report['probed']['model']} on {report['probed']['data']}: {words.facts(report)}", "dim")
    )
    _heading("Target tokens", console)
    table = _table("", "all", "that carry information")
    for line in words.lines(report):
        table.add_row(Text(line.label), Text(line.every), Text(line.informative))
    console.print(table)
    for sentence in words.explanation():
        console.print(Text(sentence, "dim"))
    for name, summary in (
        ("all target tokens", report["every"]),
        ("tokens that carry information", report["informative"]),
    ):
        if summary is not None:
            _print_histogram(name, words.histogram(summary), console)
    for title, groups in (
        ("By number in the answer", report["by_index"]),
        ("By quarter of the answer", report["by_part"]),
        ("By source", report["by_source"] if len(report["by_source"]) > 1 else []),
    ):
        if groups:
            _heading(title, console)
            table = _table("", "tokens", "mean p", "carry information", "their mean p")
            for place in words.places(groups):
                table.add_row(*map(Text, place))
            console.print(table)
    if report["hardest"]:
        _heading("The hardest rows", console)
        for row in words.hardest(report):
            console.print(Text(f"  {row}"))
    if report["pilot"]:
        _print_pilot(report, console)
    _heading(f"Objective: {words.objective(report)}", console)
    console.print(Text(report["recommendation"]["reason"]))
    for caveat in report["recommendation"]["caveats"]:
        console.print(Text(f"- {caveat}", "dim"))
    console.print()
    console.print(Text(report["recommendation"]["yaml"], "cyan"), end="", soft_wrap=True)


def _print_pilot(report: Mapping[str, Any], console: Console) -> None:
    _heading("Pilot", console)
    console.print(Text(words.pilot_facts(report), "dim"))
    table = _table("", *words.CRITERIA.values())
    for trial in words.trials(report):
        table.add_row(Text(trial.name), *map(Text, trial.scores))
        if set(trial.over_nll) != {words.NONE}:
            table.add_row(Text("  more than nll", "dim"), *(Text(text, "dim") for text in trial.over_nll))
    console.print(table)
    for sentence in words.winners(report):
        console.print(Text(f"- {sentence}"))


def _print_histogram(name: str, counts: Sequence[int], console: Console) -> None:
    console.print()
    console.print(Text(f"p of {name}"))
    for line in histogram_lines(
        counts, (ASCII if console.options.ascii_only else UNICODE)["ramp"], HISTOGRAM_ROOM
    ):
        console.print(Text(f"  {line}", "blue"))
    console.print(Text(f"  {axis_line(['0', '0.5', '1'], HISTOGRAM_ROOM * len(counts))}", "dim"))


def _heading(title: str, console: Console) -> None:
    console.print()
    console.print(Text(title, "bold"))


def _table(*head: str) -> Table:
    """A table without lines, numbers to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for place, title in enumerate(head):
        table.add_column(title, justify="right" if place else "left")
    return table
