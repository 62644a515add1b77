"""Standard output whose reader may leave: `holdfast ... | head -1`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer
from rich.console import Console

from holdfast.cli.check import _console


def say(text: str) -> None:
    """Print a text at once, a line break behind it.

    A reader that has left has read what it wanted: what else is printed goes nowhere, and that is no error. Files are
    therefore written before anything is said.
    """
    try:
        typer.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # also what Python itself writes out when it ends
        os.close(nowhere)


def drawn(draw: Callable[[Console], None]) -> str:
    """What a function draws on the terminal, as a text for `say`; the last line break is left out."""
    console = _console()
    with console.capture() as captured:
        draw(console)
    return captured.get().removesuffix("\n")
