"""The commands that train nothing: `check`, `probe`, `explain`, `report`, `export` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from holdfast.cli.train_commands import DataName, ModelName

# What `check` and `probe` take alike.
MaxPromptLength = Annotated[int | None, typer.Option(help="Tokens a prompt may have.")]
OnOverflow = Annotated[Literal["cut", "drop", "error"], typer.Option(help="What happens to longer rows.")]
ChatTemplate = Annotated[
    str | None, typer.Option(help="A .jinja file, or a tokenizer whose template to take.")
]
AppendEos = Annotated[bool, typer.Option("--append-eos", help="Close turns that the template leaves open.")]
Validation = Annotated[Literal["strict", "lenient"], typer.Option(help="strict: one bad row is exit code 2.")]
Format = Annotated[str | None, typer.Option(help="The rows' layout; by default found out.")]
Split = Annotated[str | None, typer.Option(help="A split of a hub data set or folder.")]
Revision = Annotated[str | None, typer.Option(help="A revision of a hub data set.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Html = Annotated[Path | None, typer.Option(help="Write the report as a page.")]


def register(group: typer.Typer) -> None:
    """Add the commands."""
    group.command()(check)
    group.command(
        epilog="Example: holdfast probe Qwen/Qwen3-4B-Base rows.jsonl --pilot 100 learning_rate=2e-5 adapter=null"
    )(probe)
    group.command(epilog="Example: holdfast explain --plot nll f_alpha:alpha=0.3 threshold:base=p,low=0.2")(
        explain
    )
    group.command()(report)
    group.command(
        epilog="Example: holdfast export runs/qwen3-4b/align/checkpoint-200 exported --dtype bfloat16"
    )(export)
    group.command()(doctor)


def check(
    source: Annotated[str, typer.Argument(metavar="FILE_OR_NAME", help="A file, a folder or a hub name.")],
    model: Annotated[
        str | None, typer.Option(help="Also tokenize, with this model's tokenizer and chat template.")
    ] = None,
    kind: Annotated[
        Literal["preference", "sft"], typer.Option(help="What the rows are to serve as.")
    ] = "preference",
    format: Format = None,
    split: Split = None,
    revision: Revision = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and one answer together; a run's default, 1024; 0: any."),
    ] = None,
    max_prompt_length: MaxPromptLength = None,
    on_overflow: OnOverflow = "cut",
    chat_template: ChatTemplate = None,
    append_eos: AppendEos = False,
    train_on: Annotated[
        Literal["last", "all"], typer.Option(help="Assistant turns to train (supervised rows).")
    ] = "last",
    seed: Annotated[int, typer.Option(help="Chooses examples, and pairs among scored completions.")] = 0,
    validation: Validation = "strict",
    quarantine: Annotated[
        Path | None, typer.Option(help="Write every bad row here, with its reason.")
    ] = None,
    num_proc: Annotated[int | None, typer.Option(help="Processes; by default one a core.")] = None,
    as_json: AsJson = False,
    html: Html = None,
) -> None:
    """Check every row before anything is trained: what is bad and where, lengths, balance, examples."""
    from holdfast.cli.check import show_check

    code = show_check(
        source,
        model=model,
        kind=kind,
        format=format,
        split=split,
        revision=revision,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        on_overflow=on_overflow,
        chat_template=chat_template,
        append_eos=append_eos,
        train_on=train_on,
        seed=seed,
        validation=validation,
        quarantine=quarantine,
        num_proc=num_proc,
        as_json=as_json,
        html=html,
    )
    raise typer.Exit(code)


def probe(
    model: ModelName,
    data: DataName,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings of the pilot's trainings, as `holdfast sft` takes them (learning_rate=2e-5, adapter=null).",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows to probe, a seeded sample; 0: all.")] = 2000,
    pilot: Annotated[
        int, typer.Option(metavar="N", help="Also train N steps with each candidate objective, and compare.")
    ] = 0,
    held_out: Annotated[int, typer.Option(help="Rows a pilot is judged on; at most a fifth of all.")] = 200,
    samples: Annotated[int, typer.Option(help="Answers a held-out prompt at temperature 1.")] = 4,
    batch_size: Annotated[int, typer.Option(help="Rows a forward.")] = 8,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Of the weights that are probed; auto: the checkpoint's."),
    ] = "float32",
    seed: Annotated[int, typer.Option(help="Chooses the rows, the intervals' draws, the pilot's.")] = 0,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of prompt and answer together; a run's default, 1024.")
    ] = None,
    max_prompt_length: MaxPromptLength = None,
    on_overflow: OnOverflow = "cut",
    train_on: Annotated[
        Literal["last", "all"], typer.Option(help="Assistant turns that are targets.")
    ] = "last",
    chat_template: ChatTemplate = None,
    append_eos: AppendEos = False,
    validation: Validation = "strict",
    format: Format = None,
    split: Split = None,
    revision: Revision = None,
    source_column: Annotated[
        str | None, typer.Option(help="A column whose values are told apart; by default `source`, or files.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            "-o",
            metavar="FOLDER",
            help="Where probe.json goes.",
            show_default="runs/probe-MODEL",
        ),
    ] = None,
    as_json: AsJson = False,
    html: Html = None,
) -> None:
    """Which objective for this model and these rows: the regime, the reason, and the YAML to paste."""
    from holdfast.cli.probe import show_probe

    show_probe(
        model,
        data,
        settings or [],
        rows=rows,
        pilot=pilot,
        held_out=held_out,
        samples=samples,
        batch_size=batch_size,
        dtype=dtype,
        seed=seed,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        on_overflow=on_overflow,
        train_on=train_on,
        chat_template=chat_template,
        append_eos=append_eos,
        validation=validation,
        format=format,
        split=split,
        revision=revision,
        source_column=source_column,
        output_dir=output_dir,
        as_json=as_json,
        html=html,
    )


def explain(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Objectives; leave out for the list. With --plot, settings may follow: f_alpha:alpha=0.3",
        ),
    ] = None,
    plot: Annotated[
        bool,
        typer.Option(
            "--plot",
            help="Draw f(p) and its gradient weight W_f(p) of token objectives; without names, the four of the "
            "paper's figure.",
        ),
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The figure: .svg or .png.")
    ] = Path("objective-shapes.svg"),
) -> None:
    """What an objective computes, its symbols and defaults, what it needs, and where it comes from."""
    from holdfast.cli import explain as explaining

    if plot:
        explaining.plot(names or [], output)
    else:
        explaining.show(names or [])


def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
) -> None:
    """Write report.html from a run folder's files."""
    from holdfast.cli.run import write_run_report

    write_run_report(folder)


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A folder: an adapter, a run's checkpoint (.../checkpoint-200) or a model."
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to make.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The adapter's base: a folder or hub name.", show_default="as it says"
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A revision of the base on the hub.")] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        typer.Option(help="Of the saved weights.", show_default="what most of the model has"),
    ] = None,
    stop_token: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOKEN", help="Generation stops here too: what ends a turn. May be given again."
        ),
    ] = None,
) -> None:
    """Merge an adapter or a checkpoint into a whole model: safetensors and tokenizer, loaded again and compared."""
    from holdfast.cli.export import export_model

    export_model(source, output, base=base, revision=revision, dtype=dtype, stop_tokens=stop_token or [])


def doctor(as_json: AsJson = False) -> None:
    """What this machine and installation are, what holdfast would compute with, and what to mend.

    Exit code 2 where something makes training impossible; warnings are 0.
    """
    from holdfast.cli.doctor import show_doctor

    raise typer.Exit(show_doctor(as_json=as_json))
