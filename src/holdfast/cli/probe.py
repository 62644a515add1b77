"""`holdfast probe`: which objective for this model and these rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from holdfast.cli.check import _console
from holdfast.cli.probe_pilot import pilot_config, with_pilot
from holdfast.cli.probe_printing import render_probe
from holdfast.cli.quiet import quiet_libraries
from holdfast.errors import ConfigError, DataError, Interrupted

if TYPE_CHECKING:
    from holdfast.capability.report import CapabilityReport

LENIENT = "data.validation=lenient"  # in a refusal of rows, where it would go on


def show_probe(
    model: str,
    data: str,
    settings: Sequence[str],
    *,
    rows: int,
    pilot: int,
    held_out: int,
    samples: int,
    batch_size: int,
    dtype: Literal["auto", "float32", "bfloat16", "float16"],
    seed: int,
    max_length: int | None,
    max_prompt_length: int | None,
    on_overflow: Literal["cut", "drop", "error"],
    train_on: Literal["last", "all"],
    chat_template: str | None,
    append_eos: bool,
    validation: Literal["strict", "lenient"],
    format: str | None,
    split: str | None,
    revision: str | None,
    source_column: str | None,
    output_dir: Path | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Probe, run the pilot if there is to be one, write `probe.json`, show what was found.

    Raises:
        HoldfastError: the rows, the model or a setting cannot be used; or the user stopped it.
    """
    if settings and not pilot:
        raise ConfigError(
            f"'{settings[0]}': settings are those of the pilot's trainings; ask for one with --pilot N"
        )
    if pilot < 0 or rows < 0:
        raise ConfigError("--pilot and --rows count from 0")
    quiet_libraries()
    config = pilot_config(model, data, settings) if pilot else None
    from holdfast.cli.stage import default_output_dir
    from holdfast.data.lengths import MAX_LENGTH

    folder = output_dir or Path("runs") / default_output_dir("sft", model).name.replace("sft-", "probe-", 1)
    options: dict[str, Any] = {
        "max_length": MAX_LENGTH if max_length is None else max_length,
        "max_prompt_length": max_prompt_length,
        "on_overflow": on_overflow,
        "train_on": train_on,
        "append_eos": append_eos,
        "chat_template": chat_template,
        "validation": validation,
        "format": format,
        "split": split,
        "revision": revision,
    }
    from holdfast.capability.measure import probe
    from holdfast.data.validation import InvalidRows

    try:
        report = probe(
            model,
            config.model.tokenizer if config is not None else None,
            data,
            model_revision=config.model.revision if config is not None else None,
            limit=rows or None,
            batch_size=batch_size,
            seed=seed,
            dtype=dtype,
            source_column=source_column,
            progress=not as_json,
            **options,
        )
    except InvalidRows as error:
        if LENIENT not in str(error):  # it would not help
            raise
        raise InvalidRows(f"{error}\nFor a probe that is --validation lenient.", error.problems) from error
    except KeyboardInterrupt as error:
        raise Interrupted("the probe was stopped", "nothing was written") from error
    saved, page = _save(report, folder, html)
    if config is not None:
        typer.echo(f"saved before the pilot: {saved}", err=True)
        try:
            report = with_pilot(
                report,
                config,
                data,
                options,
                steps=pilot,
                held_out_rows=held_out,
                samples=samples,
                seed=seed,
                progress=not as_json,
            )
        except KeyboardInterrupt as error:
            raise Interrupted("the pilot was stopped", f"what the probe found is in {saved}") from error
        saved, page = _save(report, folder, html)
    found = report.to_dict()
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
    else:
        render_probe(found, _console())
    typer.echo(f"saved: {saved}", err=as_json)
    if page is not None:
        typer.echo(f"page: {page}", err=as_json)


def _save(report: CapabilityReport, folder: Path, html: Path | None) -> tuple[Path, Path | None]:
    """Write `probe.json`, and the page if one is asked for."""
    from holdfast.reports.probe import write_probe

    try:
        saved = report.save(folder / "probe.json")
    except OSError as error:
        raise DataError(
            f"cannot write '{folder / 'probe.json'}': {error.strerror}; name another --output-dir"
        ) from error
    return saved, write_probe(html, report.to_dict()) if html is not None else None
