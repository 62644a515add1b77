"""`holdfast init`: the commented YAML that a run begins with."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import typer

from holdfast.cli.quiet import quiet_libraries
from holdfast.errors import ConfigError
from holdfast.files import replacing
from holdfast.reports.visible import visible


def write_starter(file: Path, *, model: str | None, data: str | None) -> None:
    """Write the file, whole or not at all, and say what to do next.

    Raises:
        ConfigError: a file that is there already, cannot be written or is no YAML; a name that no run takes.
    """
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"'{file}': the file's name must end in .yaml (a model is given by --model)")
    if os.path.lexists(file):
        raise ConfigError(
            f"'{file}' is there already and stays as it is; name another, as in holdfast init "
            f"{shlex.quote(f'{file.stem}-2.yaml')}, or move it away first"
        )
    quiet_libraries()
    from holdfast.experiments.starter import DATA, MODEL, starter

    text = starter(model, data, f"runs/{file.stem}")
    try:
        with replacing(file) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"'{file}' cannot be written: {error.strerror}") from error
    name = shlex.quote(str(file))
    missing = [place for place, given in ((MODEL, model), (DATA, data)) if given is None]
    steps = [f"fill in {' and '.join(missing)} in {name}"] if missing else []
    steps += [
        f"holdfast check {shlex.quote(data or 'DATA')} --model {shlex.quote(model or 'MODEL')}",
        f"holdfast run {name} --dry-run",
        f"holdfast run {name}",
    ]
    typer.echo(visible(f"written: {file}"))
    typer.echo("next:")
    for step in steps:
        typer.echo(visible(f"  {step}"))
