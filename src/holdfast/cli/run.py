"""`holdfast run` and `holdfast report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from holdfast.cli.quiet import quiet_libraries
from holdfast.errors import ConfigError, Interrupted
from holdfast.reports.visible import visible

if TYPE_CHECKING:
    from holdfast.experiments.config import RunConfig


def run_pipeline(config: Path, overrides: Sequence[str], *, overwrite: bool, resume: bool) -> None:
    """Check the configuration, run its stages, write the report."""
    quiet_libraries()
    from holdfast.experiments.config import load_config

    run_and_report(load_config(config, overrides), overwrite=overwrite, resume=resume)


def run_dry(
    config: Path,
    overrides: Sequence[str],
    *,
    gpu: str | None,
    gpus: int | None,
    overwrite: bool,
    resume: bool,
) -> int:
    """Say what a run would do and need, and what would refuse it; returns the exit code.

    Raises:
        ConfigError: settings that no run could have; `--resume`.
    """
    if resume:
        raise ConfigError("--dry-run says what a new run would do; leave --resume out")
    quiet_libraries()
    from holdfast.experiments.config import load_config
    from holdfast.experiments.dry_run import DEFAULT_GPU, dry_run
    from holdfast.experiments.dry_run_words import words

    settings = load_config(config, overrides)
    found = dry_run(
        settings,
        gpu=DEFAULT_GPU if gpu is None else gpu,
        gpus=1 if gpus is None else gpus,
        overwrite=overwrite,
    )
    for line in words(found):
        typer.echo(visible(line))
    return 0 if found.would_start else ConfigError.exit_code


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
