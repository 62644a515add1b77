"""`holdfast demo`: run it, print the table, say where the report is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from holdfast.cli.quiet import quiet_libraries


def show_demo(output_dir: Path, seed: int) -> None:
    """Run the demo and print what each arm ended at."""
    quiet_libraries()
    from holdfast.demo.run import run_demo

    def percent(interval: tuple[float, float, float]) -> str:
        return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * part for part in interval))

    console = Console(highlight=False)
    console.width = max(console.width, 100)  # a table that wraps cannot be read
    console.print("The tiny world: four ways to align one small model. No network; about two minutes.\n")
    results = run_demo(output_dir, seed)
    table = Table(box=None, padding=(0, 2, 0, 0), title="On held-out tasks, with 95 % intervals")
    table.title_justify = "left"
    for heading in ("after", "exact match %", "valid format %", "chosen drift", "rejected floor %"):
        table.add_column(heading, no_wrap=True)
    for result in results:
        drift = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*result.drift)
        cells = (result.name, percent(result.exact), percent(result.valid), drift, percent(result.floor))
        table.add_row(*map(escape, cells))
    console.print()
    console.print(table)
    console.print(
        "\nChosen drift: change of the right answers' log-prob since the start, in nats a token; below 0 is"
        "\nunlearning. Rejected floor: share of the wrong answers' tokens with a probability below 1e-4."
    )
    console.print(f"curves: {output_dir / 'comparison.html'}", soft_wrap=True)
