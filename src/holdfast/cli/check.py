"""`holdfast check`: every row held against what training needs, before anything is trained."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from holdfast.cli.quiet import quiet_libraries
from holdfast.errors import ConfigError, DataError
from holdfast.reports import data_check_words as words
from holdfast.reports.visible import visible

LISTED = 6  # bad rows shown in a terminal; what goes to a file or a pipe lists all of them
DETAIL = 300  # characters shown of what is wrong with a row
PIECE = 480  # characters shown of a piece of an example
PIPED = 1000  # columns of what goes to a file or a pipe, so that no place is broken in two
HEIGHT = 3  # lines of a histogram
# Steps of a histogram's column within a line, and marks; then the same for terminals without Unicode.
UNICODE = {"ramp": " ▁▂▃▄▅▆▇█", "passed": "✓", "failed": "✗", "gutter": "│ ", "open": "⟦", "close": "⟧"}
ASCII = {"ramp": " .-=#", "passed": "+", "failed": "x", "gutter": "| ", "open": "[[", "close": "]]"}


def show_check(
    source: str,
    *,
    model: str | None,
    kind: Literal["preference", "sft"],
    format: str | None,
    split: str | None,
    revision: str | None,
    max_length: int | None,
    max_prompt_length: int | None,
    on_overflow: Literal["cut", "drop", "error"],
    chat_template: str | None,
    append_eos: bool,
    train_on: Literal["last", "all"],
    seed: int,
    validation: Literal["strict", "lenient"],
    quarantine: Path | None,
    num_proc: int | None,
    as_json: bool,
    html: Path | None,
) -> int:
    """Check every row, show what was found, and return the exit code.

    Returns:
        2 where a run would refuse the rows: a bad row under `strict`, or no good row at all; else 0.

    Raises:
        HoldfastError: the source, the tokenizer or a setting cannot be used.
    """
    from holdfast.data.check import check_source
    from holdfast.data.lengths import MAX_LENGTH, LengthRule

    of_tokens = (max_length, max_prompt_length, chat_template) != (None, None, None) or on_overflow != "cut"
    if model is None and (of_tokens or append_eos or train_on != "last"):
        raise ConfigError(
            "limits of length and the chat template are a matter of tokens: name the model whose tokens to count with "
            "--model"
        )
    # as a run's default: what is cut here is what a run would cut
    rule = LengthRule(
        MAX_LENGTH if max_length is None else max_length or None, max_prompt_length, on_overflow
    )
    tokenizer = vocabulary = None
    if model is not None:  # the libraries that this takes are slow to import
        quiet_libraries()
        from holdfast.models.loading import load_tokenizer, require_embedded, vocabulary_of

        tokenizer, vocabulary = load_tokenizer(model, chat_template=chat_template), vocabulary_of(model)
        require_embedded(tokenizer, vocabulary)
    if sys.stderr.isatty():
        Console(stderr=True).print(Text(f"checking {visible(source)} ...", "dim"))
    try:
        report = check_source(
            source,
            kind,
            format=format,
            split=split,
            revision=revision,
            tokenizer=tokenizer,
            rule=rule,
            train_on=train_on,
            append_eos=append_eos,
            vocab_size=vocabulary,
            seed=seed,
            num_proc=num_proc,
            quarantine=quarantine,
        ).as_dict()
    except OSError as error:
        raise DataError(f"a file cannot be read or written: {error}") from error
    if as_json:
        typer.echo(json.dumps(finite(report), allow_nan=False))
    else:
        render_check(report, _console())
    if html is not None:
        from holdfast.reports.data_check import write_check

        path = write_check(html, report)
        typer.echo(f"page: {path}", err=as_json)
    refused = validation == "strict" and report["refused"]
    return 2 if refused or not report["good"] else 0


def finite(value: Any) -> Any:
    """A report's values as JSON has them: a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _console() -> Console:
    """The terminal; what its encoding has no form for is written as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, width=PIPED if piped else None)


def render_check(report: Mapping[str, Any], console: Console) -> None:
    """Print a report (`CheckReport.as_dict()`).

    Every text goes out as `rich.text.Text` of visible characters, so nothing in a row is read as markup or
    obeyed by the terminal.

    Raises:
        DataError: the mapping is no report of a check.
    """
    report = words.harmless(report)
    _print_verdict(report, console)
    _print_rows(report, console)
    _print_lengths(report, console)
    _print_truncation(report, console)
    for name, sentence in words.findings(report):
        _heading(name, console)
        _say(sentence, console)
    _print_template(report, console)
    _print_examples(report, console)
    for title, sentences, style in (
        ("Worth knowing", report["warnings"], "yellow"),
        ("How to go on", words.ways_on(report), ""),
    ):
        if sentences:
            _heading(title, console)
        for sentence in sentences:
            _say(sentence, console, style)


def _print_verdict(report: words.Report, console: Console) -> None:
    passed, sentence = words.verdict(report)
    console.print(_mark(passed, console), Text(sentence, "bold green" if passed else "bold red"))
    _say(f"{report['source']}: {words.facts(report)}", console, "dim")


def _print_rows(report: words.Report, console: Console) -> None:
    _heading("Rows", console)
    _say(words.rows(report), console)
    table = _grid()
    for file, layout in report["formats"].items():
        table.add_row(Text(file or "rows in memory", "cyan"), Text(layout))
    _print_table(table, console)
    if not report["refused"]:
        return
    _heading("Bad rows by reason", console)
    table = _grid(numbers=1)
    for one in words.refused(report):
        table.add_row(Text(one.rows, "red"), Text(one.reason, "bold"), Text(one.meaning, "dim"))
    _print_table(table, console)
    listed = report["problems"][: LISTED if console.is_terminal else None]
    _heading(
        "The first of them" if len(listed) < sum(report["refused"].values()) else "Each of them", console
    )
    for problem in listed:
        _print_lines(Text.assemble((problem["where"], "cyan"), "  ", (problem["reason"], "bold")), console)
        _print_lines(Text(words.middle_out(problem["detail"], DETAIL)), console, " " * 6)
        row = Text(problem["row"], "dim")
        row.truncate(console.width - 6, overflow="crop")
        _print_lines(row, console, " " * 6)
    more = words.unlisted(report, len(listed))
    if more:
        _say(more, console, "dim")


def _print_lengths(report: words.Report, console: Console) -> None:
    if not report["lengths"]:
        return
    _heading(f"Lengths in {report['unit']}", console)
    ramp = _signs(console)["ramp"]
    table = _grid()
    for side, found in report["lengths"].items():
        room = max(1, min(3, (console.width - 32) // max(1, len(found["counts"]))))
        bars = Text(no_wrap=True)
        for line in histogram_lines(found["counts"], ramp, room):
            bars.append(line + "\n", "blue")
        bars.append(axis_line(words.axis(found), room * len(found["counts"])), "dim")
        table.add_row(Text(side, "bold"), Text("\n".join(words.length_words(found)), no_wrap=True), bars)
    _print_table(table, console)


def _print_truncation(report: words.Report, console: Console) -> None:
    cuts, notes = words.cuts(report), words.cut_notes(report)
    if cuts or notes:
        _heading("Truncation", console)
    table = _grid()
    for cut in cuts:
        table.add_row(Text(cut.side), Text(cut.rows), Text(cut.tokens))
    _print_table(table, console)
    for note in notes:
        _say(note, console)


def histogram_lines(counts: Sequence[int], ramp: str, room: int, height: int = HEIGHT) -> list[str]:
    """Counts as columns, `room` characters wide, top line first; a bin that is not empty always shows.

    Args:
        ramp: characters from an empty to a full cell.
    """
    steps = len(ramp) - 1
    highest = max(counts, default=0)
    levels = [max(1, round(rows / highest * height * steps)) if rows else 0 for rows in counts]
    return [
        "".join(ramp[min(steps, max(0, level - below * steps))] * room for level in levels)
        for below in reversed(range(height))
    ]


def axis_line(edges: Sequence[str], width: int) -> str:
    """First, middle (if there is one) and last edge, spread below a histogram that is `width` wide."""
    first, *between, last = edges
    for middle in between:
        first = first.ljust((width - len(middle)) // 2) + middle
    return first + last.rjust(max(width - len(first), len(last) + 1))


def _print_template(report: words.Report, console: Console) -> None:
    if not report["template"]:
        return
    _heading("Chat template", console)
    table = _grid()
    for check in report["template"]:
        table.add_row(_mark(check["passed"], console), Text(check["name"]), Text(check["detail"], "dim"))
    _print_table(table, console)


def _print_examples(report: words.Report, console: Console) -> None:
    if not report["examples"]:
        return
    signs = _signs(console)
    colourless = console.no_color or console.color_system is None
    opened, closed = (signs["open"], signs["close"]) if colourless else ("", "")
    _heading("Rows as the model reads them", console)
    way = f"between {opened} and {closed}" if colourless else "green"
    _print_lines(Text.assemble("trained tokens are ", (way, "green"), ", the others only read"), console)
    for example in report["examples"]:
        for side, pieces in words.example_sides(example, PIECE).items():
            console.print()
            _print_lines(Text.assemble((example["where"], "cyan"), "  ", (side, "bold")), console)
            text = Text()
            for piece, trained in pieces:
                text.append(f"{opened}{piece}{closed}" if trained else piece, "green" if trained else "")
            _print_lines(text, console, before="  " + signs["gutter"])


def _heading(title: str, console: Console) -> None:
    console.print()
    console.print(Text(title, "bold"))


def _say(sentence: str, console: Console, style: str = "") -> None:
    _print_lines(Text(sentence, style), console)


def _print_lines(text: Text, console: Console, before: str = "  ") -> None:
    """Wrap a text and print each line behind `before`."""
    for line in text.wrap(console, max(20, console.width - len(before))):
        console.print(Text.assemble((before, "dim" if before.strip() else ""), line))


def _print_table(table: Table, console: Console) -> None:
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _grid(numbers: int = 0) -> Table:
    """A table without lines; its first `numbers` columns stand to the right."""
    table = Table.grid(padding=(0, 3, 0, 0))
    for _ in range(numbers):
        table.add_column(justify="right")
    return table


def _mark(passed: bool, console: Console) -> Text:
    signs = _signs(console)
    return Text(signs["passed"], "bold green") if passed else Text(signs["failed"], "bold red")


def _signs(console: Console) -> Mapping[str, str]:
    return ASCII if console.options.ascii_only else UNICODE
