"""`holdfast VERB`: parse, call, exit code.

Exit codes: 0 done; 2 bad input or configuration; 3 stopped by a health verdict; 130 or 143 interrupted.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from holdfast import __version__
from holdfast.cli.eval import app as eval_group
from holdfast.cli.eval_tasks import register as register_tasks
from holdfast.errors import ConfigError, HoldfastError, Interrupted, PeerError
from holdfast.files import refusal
from holdfast.reports.visible import visible

LINES = "\n\t"  # what sets out a message
PARTING = 1.0  # seconds that a failing process of several stays for the others
app = typer.Typer(
    name="holdfast",
    help="Post-train language models without unlearning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
register_tasks(eval_group)
app.add_typer(eval_group)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Override a key: align.learning_rate=1.0e-6"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Move a run that is there aside.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run that is there; where there is none, begin it.")
]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The run's YAML file.")],
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, estimate memory and time, and train nothing: exit code 0 if a run would start.",
        ),
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a dry run: h100, h200, a100, 4090, ...", show_default="h100"),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(metavar="N", help="Of a dry run: that many.", show_default="1")
    ] = None,
) -> None:
    """Rows in, aligned model and report out: the two stages of a YAML file."""
    from holdfast.cli.run import run_dry, run_pipeline

    if dry_run:
        raise typer.Exit(
            run_dry(config, overrides or [], gpu=gpu, gpus=gpus, overwrite=overwrite, resume=resume)
        )
    if gpu is not None or gpus is not None:
        raise ConfigError("--gpu and --gpus belong to --dry-run: a run takes the GPUs there are")
    run_pipeline(config, overrides or [], overwrite=overwrite, resume=resume)


ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="The model to start from: a folder or hub name.")
]
DataName = Annotated[str, typer.Argument(metavar="DATA", help="The rows: a file, a folder or a hub name.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings: the stage's own keys as they are (learning_rate=1e-6, max_steps=100), others in full "
        "(data.max_length=2048, adapter=null).",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="A run's YAML to take settings from. Its model, rows, output folder and other stage are left out.",
    ),
]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        "-o",
        metavar="FOLDER",
        help="The run folder: final/ (the trained model), run.json, report.html.",
        show_default="runs/VERB-MODEL",
    ),
]


@app.command(
    epilog="Example: holdfast sft Qwen/Qwen3-4B-Base rows.jsonl learning_rate=2e-5 num_train_epochs=3"
)
def sft(
    model: ModelName,
    data: DataName,
    settings: Settings = None,
    config: ConfigFile = None,
    output_dir: OutputDir = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Supervised fine-tuning alone: demonstrations (or the chosen answers of pairs) in, model and report out.

    LoRA and a trained LM head by default; adapter=null trains every weight. `holdfast explain` lists the objectives.
    """
    from holdfast.cli.stage import run_stage

    run_stage(
        "sft",
        model,
        data,
        settings or [],
        config=config,
        output_dir=output_dir,
        overwrite=overwrite,
        resume=resume,
    )


@app.command(
    epilog="Example: holdfast align runs/sft-Qwen3-4B-Base/final pairs.jsonl objective.hard_margin=1.2"
)
def align(
    model: ModelName,
    data: DataName,
    settings: Settings = None,
    config: ConfigFile = None,
    output_dir: OutputDir = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Preference alignment alone: pairs in, aligned model and report out; SLIME unless `objective` says otherwise.

    LoRA and a trained LM head by default; adapter=null trains every weight. `holdfast explain` lists the objectives.
    """
    from holdfast.cli.stage import run_stage

    run_stage(
        "align",
        model,
        data,
        settings or [],
        config=config,
        output_dir=output_dir,
        overwrite=overwrite,
        resume=resume,
    )


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of rows, training and sampling.")] = 0,
) -> None:
    """Two minutes, no network: SLIME beside DPO, SimPO and SFT in the tiny world."""
    from holdfast.cli.demo import show_demo

    show_demo(output_dir, seed)


@app.command(epilog="Example: holdfast sweep recipes/continuum/tiny.yaml --jobs 2")
def sweep(
    config: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep's YAML file.")],
    overrides: Overrides = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side, of one thread each.")] = 1,
) -> None:
    """Every objective in every setting of the continuum, tiny models: a table and a figure.

    Finished cells are on disk; the same command goes on from them.
    """
    from holdfast.cli.sweep import show_sweep

    show_sweep(config, overrides or [], jobs)


@app.command()
def check(
    source: Annotated[str, typer.Argument(metavar="FILE_OR_NAME", help="A file, a folder or a hub name.")],
    model: Annotated[
        str | None, typer.Option(help="Also tokenize, with this model's tokenizer and chat template.")
    ] = None,
    kind: Annotated[
        Literal["preference", "sft"], typer.Option(help="What the rows are to serve as.")
    ] = "preference",
    format: Annotated[str | None, typer.Option(help="The rows' layout; by default found out.")] = None,
    split: Annotated[str | None, typer.Option(help="A split of a hub data set or folder.")] = None,
    revision: Annotated[str | None, typer.Option(help="A revision of a hub data set.")] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and one answer together; a run's default, 1024; 0: any."),
    ] = None,
    max_prompt_length: Annotated[int | None, typer.Option(help="Tokens a prompt may have.")] = None,
    on_overflow: Annotated[
        Literal["cut", "drop", "error"], typer.Option(help="What happens to longer rows.")
    ] = "cut",
    chat_template: Annotated[
        str | None, typer.Option(help="A .jinja file, or a tokenizer whose template to take.")
    ] = None,
    append_eos: Annotated[
        bool, typer.Option("--append-eos", help="Close turns that the template leaves open.")
    ] = False,
    train_on: Annotated[
        Literal["last", "all"], typer.Option(help="Assistant turns to train (supervised rows).")
    ] = "last",
    seed: Annotated[int, typer.Option(help="Chooses examples, and pairs among scored completions.")] = 0,
    validation: Annotated[
        Literal["strict", "lenient"], typer.Option(help="strict: one bad row is exit code 2.")
    ] = "strict",
    quarantine: Annotated[
        Path | None, typer.Option(help="Write every bad row here, with its reason.")
    ] = None,
    num_proc: Annotated[int | None, typer.Option(help="Processes; by default one a core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page.")] = None,
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


@app.command(
    epilog="Example: holdfast probe Qwen/Qwen3-4B-Base rows.jsonl --pilot 100 learning_rate=2e-5 adapter=null"
)
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
    max_prompt_length: Annotated[int | None, typer.Option(help="Tokens a prompt may have.")] = None,
    on_overflow: Annotated[
        Literal["cut", "drop", "error"], typer.Option(help="What happens to longer rows.")
    ] = "cut",
    train_on: Annotated[
        Literal["last", "all"], typer.Option(help="Assistant turns that are targets.")
    ] = "last",
    chat_template: Annotated[
        str | None, typer.Option(help="A .jinja file, or a tokenizer whose template to take.")
    ] = None,
    append_eos: Annotated[
        bool, typer.Option("--append-eos", help="Close turns that the template leaves open.")
    ] = False,
    validation: Annotated[
        Literal["strict", "lenient"], typer.Option(help="strict: one bad row is exit code 2.")
    ] = "strict",
    format: Annotated[str | None, typer.Option(help="The rows' layout; by default found out.")] = None,
    split: Annotated[str | None, typer.Option(help="A split of a hub data set or folder.")] = None,
    revision: Annotated[str | None, typer.Option(help="A revision of a hub data set.")] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page.")] = None,
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


@app.command(epilog="Example: holdfast explain --plot nll f_alpha:alpha=0.3 threshold:base=p,low=0.2")
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


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
) -> None:
    """Write report.html from a run folder's files."""
    from holdfast.cli.run import write_run_report

    write_run_report(folder)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"holdfast {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: every error a user can mend becomes one message and its exit code."""
    try:
        app()
    except HoldfastError as error:
        _end(error)
    except Exception as error:
        full = refusal(error)
        if full is None:
            raise
        _end(ConfigError(full))


def _end(error: HoldfastError) -> NoReturn:
    """Say what went wrong, and end with its exit code."""
    # Every process of a run is interrupted, and one of them says so; an error may be any one's alone.
    of_another = isinstance(error, PeerError)
    if not of_another and (not isinstance(error, Interrupted) or int(os.environ.get("RANK", 0)) == 0):
        # a message may hold a name out of somebody's file: nothing in it is for the terminal to obey
        typer.secho(f"error: {visible(str(error), keep=LINES)}", fg="red", err=True)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # The others have a moment to hear of it. Then at once: a process that lets go of the others bit by bit may be
        # aborted when they are gone first, and its exit code lost.
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(PARTING)
        os._exit(error.exit_code)
    sys.exit(error.exit_code)
