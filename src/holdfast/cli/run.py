"""`holdfast run` and `holdfast report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from holdfast.cli.quiet import quiet_libraries
from holdfast.errors import Interrupted

if TYPE_CHECKING:
    from holdfast.experiments.config import RunConfig


def run_pipeline(config: Path, overrides: Sequence[str], *, overwrite: bool, resume: bool) -> None:
    """Check the configuration, run its stages, write the report."""
    quiet_libraries()
    from holdfast.experiments.config import load_config

    run_and_report(load_config(config, overrides), overwrite=overwrite, resume=resume)


def run_and_report(settings: RunConfig, *, overwrite: bool, resume: bool) -> None:
    """Run the configured stages and write the report.

    Raises:
        Interrupted: the user stopped it; says what is there.
    """
    from holdfast.experiments.pipeline import run

    try:
        folder = run(settings, overwrite=overwrite, resume=resume, say=typer.echo)
    except KeyboardInterrupt as error:
        # the second Ctrl-C: nothing was waited for
        raise Interrupted(
            f"ended at once; '{settings.output_dir}' holds what was saved before", "go on with --resume"
        ) from error
    from accelerate import PartialState

    if PartialState().is_main_process:
        write_run_report(folder)


def write_run_report(folder: Path) -> None:
    """Write `report.html` beside the run's files."""
    from holdfast.reports.html import write_report

    typer.echo(f"report: {write_report(folder)}")
