"""`holdfast sweep`: run what is missing of a grid, and show the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from holdfast.cli.quiet import quiet_libraries


def show_sweep(config: Path, overrides: Sequence[str], jobs: int) -> None:
    """Run the sweep of a YAML file and print its table."""
    quiet_libraries()
    from holdfast.demo.continuum import run_sweep
    from holdfast.demo.continuum_config import load_continuum

    sweep = load_continuum(config, overrides)
    folder = run_sweep(sweep, jobs=jobs, say=lambda line: print(line, flush=True), begin=quiet_libraries)
    print()
    print((folder / "table.md").read_text(encoding="utf-8"))
