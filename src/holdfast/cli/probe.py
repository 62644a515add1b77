"""`holdfast probe`: which objective for this model and these rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.cli.check import ASCII, UNICODE, _console, axis_line, histogram_lines
from holdfast.cli.quiet import quiet_libraries
from holdfast.errors import ConfigError, DataError, Interrupted
from holdfast.reports import probe_words as words

if TYPE_CHECKING:
    from holdfast.capability.report import CapabilityReport
    from holdfast.experiments.config import RunConfig

# Keys of a run that are options here.
OPTIONS = {
    "seed": "--seed",
    "output_dir": "--output-dir",
    "sft.max_steps": "--pilot",
    "sft.train_on": "--train-on",
    "model.chat_template": "--chat-template",
    "model.append_eos": "--append-eos",
    "data.limit": "--rows",
    "data.max_length": "--max-length",
    "data.max_prompt_length": "--max-prompt-length",
    "data.on_overflow": "--on-overflow",
    "data.validation": "--validation",
    "data.format": "--format",
    "data.split": "--split",
    "data.revision": "--revision",
}
# What a pilot takes of a run's `model` section.
OF_THE_MODEL = ("revision", "tokenizer", "dtype", "attention")
LENIENT = "data.validation=lenient"  # in a refusal of rows, where it would go on
HISTOGRAM_ROOM = 2  # columns of the terminal a bin takes


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
            report = _with_pilot(
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


def pilot_config(model: str, data: str, settings: Sequence[str]) -> RunConfig:
    """The pilot's settings, as `holdfast sft` reads them.

    Raises:
        ConfigError: an unknown key or a wrong value; a key that is an option here, that the pilot settles, or that has
            no effect in one.
    """
    from holdfast.capability.pilot import WITHOUT_EFFECT
    from holdfast.cli.stage import full_key, stage_config

    for setting in settings:
        whole = full_key("sft", setting).partition("=")[0]
        section, _, key = whole.partition(".")
        first = key.partition(".")[0]
        if section == "sft" and first == "objective":
            raise ConfigError("objective: the pilot compares several; leave it out")
        taken = {"sft": first not in WITHOUT_EFFECT, "adapter": True, "model": first in OF_THE_MODEL}
        if not taken.get(section, False):
            option = OPTIONS.get(f"{section}.{first}" if first else section)
            where = f"here it is the option {option}" if option else "leave it out"
            raise ConfigError(f"{setting.partition('=')[0]}: is no setting of a pilot; {where}")
    return stage_config("sft", model, data, settings)


def _with_pilot(
    report: CapabilityReport,
    config: RunConfig,
    data: str,
    options: Mapping[str, Any],
    *,
    seed: int,
    **how: Any,
) -> CapabilityReport:
    """The report with a pilot, and what that settles: the file to paste has the pilot's settings."""
    from holdfast.capability.demonstrations import RowSettings, take_in_demonstrations
    from holdfast.capability.pilot import pilot
    from holdfast.capability.recommendation import settle
    from holdfast.models.loading import load_tokenizer, vocabulary_of

    name = config.model.name
    assert name is not None  # given as MODEL
    tokenizer = load_tokenizer(
        config.model.tokenizer or name,
        revision=None if config.model.tokenizer else config.model.revision,
        chat_template=options["chat_template"],
    )
    of_the_model = {
        "model_dtype": config.model.dtype,
        "model_revision": config.model.revision,
        "attention": config.model.attention,
    }
    of_the_stage = {key: value for key, value in (config.sft or {}).items() if key != "objective"}
    settings = {"max_length": options["max_length"]} | of_the_model | of_the_stage
    intake = take_in_demonstrations(
        data,
        tokenizer,
        RowSettings(**options),
        vocab_size=vocabulary_of(name, revision=config.model.revision),
        seed=seed,
    )
    found = pilot(
        name,
        tokenizer,
        intake,
        settings={key: value for key, value in settings.items() if value is not None},
        adapter=config.adapter.model_dump() if config.adapter is not None else None,
        seed=seed,
        **how,
    )
    run = piloted_run(yaml.safe_load(report.recommendation.yaml), config, seed)
    return replace(report, pilot=found, recommendation=settle(report.recommendation, found, run))


def piloted_run(run: Mapping[str, Any], config: RunConfig, seed: int) -> dict[str, Any]:
    """A run's file with the settings of the pilot, but for its number of steps: what the pilot measured."""
    model = run["model"] if isinstance(run["model"], Mapping) else {"name": run["model"]}
    of_the_model = config.model.model_dump(include=set(OF_THE_MODEL), exclude_unset=True)
    of_the_stage = {key: value for key, value in (config.sft or {}).items() if key != "objective"}
    return {
        "model": {**model, **of_the_model},
        "data": run["data"],
        "adapter": config.adapter.model_dump() if config.adapter is not None else None,
        "sft": {**run["sft"], **of_the_stage},
        "output_dir": run["output_dir"],
        "seed": seed,
    }


def render_probe(report: Mapping[str, Any], console: Console) -> None:
    """Print a report (`CapabilityReport.to_dict()`); texts of rows are shown harmlessly.

    Raises:
        DataError: the mapping is no report of a probe.
    """
    report = words.harmless(report)
    console.print(Text(words.verdict(report), "bold"))
    console.print(
        Text(f"{report['probed']['model']} on {report['probed']['data']}: {words.facts(report)}", "dim")
    )
    _heading("Target tokens", console)
    table = _table("", "all", "that carry information")
    for line in words.lines(report):
        table.add_row(Text(line.label), Text(line.every), Text(line.informative))
    console.print(table)
    for sentence in words.explanation():
        console.print(Text(sentence, "dim"))
    for name, summary in (
        ("all target tokens", report["every"]),
        ("tokens that carry information", report["informative"]),
    ):
        if summary is not None:
            _print_histogram(name, words.histogram(summary), console)
    for title, groups in (
        ("By number in the answer", report["by_index"]),
        ("By quarter of the answer", report["by_part"]),
        ("By source", report["by_source"] if len(report["by_source"]) > 1 else []),
    ):
        if groups:
            _heading(title, console)
            table = _table("", "tokens", "mean p", "carry information", "their mean p")
            for place in words.places(groups):
                table.add_row(*map(Text, place))
            console.print(table)
    if report["hardest"]:
        _heading("The hardest rows", console)
        for row in words.hardest(report):
            console.print(Text(f"  {row}"))
    if report["pilot"]:
        _print_pilot(report, console)
    _heading(f"Objective: {words.objective(report)}", console)
    console.print(Text(report["recommendation"]["reason"]))
    for caveat in report["recommendation"]["caveats"]:
        console.print(Text(f"- {caveat}", "dim"))
    console.print()
    console.print(Text(report["recommendation"]["yaml"], "cyan"), end="", soft_wrap=True)


def _print_pilot(report: Mapping[str, Any], console: Console) -> None:
    _heading("Pilot", console)
    console.print(Text(words.pilot_facts(report), "dim"))
    table = _table("", *words.CRITERIA.values())
    for trial in words.trials(report):
        table.add_row(Text(trial.name), *map(Text, trial.scores))
        if set(trial.over_nll) != {words.NONE}:
            table.add_row(Text("  more than nll", "dim"), *(Text(text, "dim") for text in trial.over_nll))
    console.print(table)
    for sentence in words.winners(report):
        console.print(Text(f"- {sentence}"))


def _print_histogram(name: str, counts: Sequence[int], console: Console) -> None:
    console.print()
    console.print(Text(f"p of {name}"))
    for line in histogram_lines(
        counts, (ASCII if console.options.ascii_only else UNICODE)["ramp"], HISTOGRAM_ROOM
    ):
        console.print(Text(f"  {line}", "blue"))
    console.print(Text(f"  {axis_line(['0', '0.5', '1'], HISTOGRAM_ROOM * len(counts))}", "dim"))


def _heading(title: str, console: Console) -> None:
    console.print()
    console.print(Text(title, "bold"))


def _table(*head: str) -> Table:
    """A table without lines, numbers to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for place, title in enumerate(head):
        table.add_column(title, justify="right" if place else "left")
    return table
