"""`holdfast demo`: run it, print the table, say where the report is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from holdfast.cli.quiet import quiet_libraries


def show_demo(output_dir: Path, seed: int) -> None:
    """Run the demo and print what each arm ended at."""
    quiet_libraries()
    from holdfast.demo.run import run_demo

    def percent(interval: tuple[float, float, float]) -> str:
        value, low, high = (100 * part for part in interval)
        return f"{value:.1f} % [{low:.1f}, {high:.1f}]"

    console = Console(highlight=False)
    console.print("The tiny world: four ways to align one small model. No network; about two minutes.\n")
    results = run_demo(output_dir, seed)
    table = Table(
        box=None, padding=(0, 2, 0, 0), title="On held-out tasks (95 % intervals)", title_justify="left"
    )
    for heading in (
        "after",
        "exact match",
        "valid format",
        "chosen drift (nats/token)",
        "rejected tokens p < 1e-4",
    ):
        table.add_column(heading)
    for result in results:
        table.add_row(
            result.name,
            percent(result.exact),
            percent(result.valid),
            "{:+.3f} [{:+.3f}, {:+.3f}]".format(*result.drift),
            percent(result.floor),
        )
    console.print()
    console.print(table)
    console.print(
        "\nA negative drift is unlearning: the right answers became less likely while they were being preferred."
    )
    console.print(f"curves: {output_dir / 'comparison.html'}", soft_wrap=True)
