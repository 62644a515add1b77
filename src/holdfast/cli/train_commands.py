"""The commands that train, `run`, `sft`, `align`, `demo` and `sweep`; and `init`, which writes what `run` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.errors import ConfigError

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Override a key: align.learning_rate=1.0e-6"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Move a run that is there aside.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run that is there; where there is none, begin it.")
]
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


def register(group: typer.Typer) -> None:
    """Add the commands."""
    group.command(epilog="Example: holdfast init run.yaml --model Qwen/Qwen3-4B-Base --data pairs.jsonl")(
        init
    )
    group.command()(run)
    group.command(
        epilog="Example: holdfast sft Qwen/Qwen3-4B-Base rows.jsonl learning_rate=2e-5 num_train_epochs=3"
    )(sft)
    group.command(
        epilog="Example: holdfast align runs/sft-Qwen3-4B-Base/final pairs.jsonl objective.hard_margin=1.2"
    )(align)
    group.command()(demo)
    group.command(epilog="Example: holdfast sweep recipes/continuum/tiny.yaml --jobs 2")(sweep)


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file to write.")] = Path(
        "holdfast.yaml"
    ),
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model to start from: a folder or hub name.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="The rows: a file, a folder or a hub name.")
    ] = None,
) -> None:
    """Write the YAML of a run: each key with its meaning and its default."""
    from holdfast.cli.init import write_starter

    write_starter(file, model=model, data=data)


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


def demo(
    output_dir: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of rows, training and sampling.")] = 0,
) -> None:
    """Two minutes, no network: SLIME beside DPO, SimPO and SFT in the tiny world."""
    from holdfast.cli.demo import show_demo

    show_demo(output_dir, seed)


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
