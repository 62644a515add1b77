"""`holdfast explain`: objectives in words and symbols."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from holdfast.errors import ConfigError
from holdfast.objectives.explain import Explanation, explain
from holdfast.objectives.registry import list_objectives, objective_class


def show(name: str | None) -> None:
    """Print one objective, or the list of all.

    Raises:
        ConfigError: no such objective; names the nearest.
    """
    console = Console(highlight=False)
    if name is None:
        _print_list(console)
        return
    try:
        _print_one(console, explain(name))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _print_list(console: Console) -> None:
    for kind, heading in (("pair", "on preference pairs"), ("token", "on tokens (supervised)")):
        table = Table(title=f"Objectives {heading}", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in ("name", "what it does", "reference"):
            table.add_column(column)
        for name in list_objectives(kind):
            table.add_row(
                name, explain(name).title, "needed" if objective_class(name).needs_reference else ""
            )
        console.print(table)
        console.print()
    console.print("holdfast explain NAME tells the rest.")


def _print_one(console: Console, found: Explanation) -> None:
    console.print(f"[bold]{found.name}[/bold]  {found.title}", markup=True)
    console.print(f"\n  {found.formula}\n", markup=False)
    if found.symbols:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("field", "default", "meaning"):
            table.add_column(column)
        for symbol in found.symbols:
            table.add_row(symbol.field, str(symbol.default), symbol.meaning)
        console.print(table)
    console.print(f"\nneeds: {found.needs}", markup=False)
    console.print(f"paper: {found.paper}", markup=False)
    for name, values in found.presets.items():
        text = ", ".join(f"{key}={value}" for key, value in values.items()) or "the defaults"
        console.print(f"preset {name}: {text}", markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
