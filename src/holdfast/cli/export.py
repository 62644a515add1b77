"""`holdfast export`: the whole model's folder, and what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from holdfast.cli.quiet import quiet_libraries
from holdfast.reports.visible import visible


def export_model(
    source: Path,
    output: Path,
    *,
    base: str | None,
    revision: str | None,
    dtype: str | None,
    stop_tokens: Sequence[str],
) -> None:
    """Merge, save, compare; and print the folder, its dtype and what saving changed."""
    quiet_libraries()
    from holdfast.training.exporting import export

    found = export(source, output, base=base, revision=revision, dtype=dtype, stop_tokens=stop_tokens)
    lines = {
        "source": found.source,
        "folder": str(found.saved.folder),
        "dtype": found.saved.dtype,
        "drift": f"{found.saved.drift:.2g} nats a token, from SOURCE to what was saved, on 16 random tokens",
        "stops at": ", ".join(found.stops) or "no token: name the one that ends a turn with --stop-token",
    }
    for name, words in lines.items():
        typer.echo(visible(f"{name + ':':<9} {words}"))
    for note in found.notes:
        typer.secho(visible(f"note: {note}"), fg="yellow", err=True)
