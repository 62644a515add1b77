"""What every evaluation ends with: its page, and what was found, on the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

from holdfast.cli.printing import drawn, say
from holdfast.reports import evaluation_words as words
from holdfast.reports.visible import visible

if TYPE_CHECKING:
    from holdfast.evaluation.results import Results

LISTED = 5  # ids named in the terminal of each kind of oddity


def finish(results: Results, folder: Path, as_json: bool) -> None:
    """Write the page, and print what was found."""
    from holdfast.reports.evaluation import write_evaluation

    found = asdict(results)
    saved = f"saved: {folder / 'results.json'}\npage: {write_evaluation(folder)}"
    if as_json:
        typer.echo(saved, err=True)
        say(json.dumps(found, allow_nan=False))
    else:
        say(f"{drawn(lambda console: render_results(found, console))}\n{saved}")


def render_results(found: dict[str, Any], console: Console) -> None:
    """Print the scores, what is missing, and why the name is what it is; texts of files are shown harmlessly."""
    console.print(Text(visible(words.headline(found)), "bold"))
    for line in words.score_lines(found["scores"][1:]):
        console.print(Text(f"  {visible(line)}"))
    for line in [*words.cut_lines(found), *words.missing_lines(found["missing"], LISTED)]:
        console.print(Text(visible(line), "yellow"))
    for note in found["notes"]:
        console.print(Text(visible(note), "dim"))
    if found["why_not_official"]:
        console.print(Text("custom, because of:", "dim"))
        for reason in found["why_not_official"]:
            console.print(Text(f"- {visible(reason)}", "dim"))
