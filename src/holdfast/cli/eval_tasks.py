"""`holdfast eval figfont`, `maths` and `lm_eval`: tasks with right answers, for which no judge is needed."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.eval_backend import Answerer
from holdfast.cli.eval_options import (
    AsJson,
    Attempts,
    BackendName,
    BatchSize,
    Concurrency,
    ConnectTimeout,
    Dtype,
    Model,
    ModelKey,
    ModelUrl,
    OutputDir,
    ReadTimeout,
    Seed,
    TotalTimeout,
)
from holdfast.errors import ConfigError
from holdfast.evaluation.answers.client_settings import Deadlines, Retries

ALL_MATHS = "gsm8k,math_500,aime24,amc23"
Template = Annotated[
    str | None,
    typer.Option("--chat-template", help="A .jinja file, or a tokenizer whose template to take."),
]
FirstQuestions = Annotated[
    int | None, typer.Option("--limit", min=1, help="The first so many questions of each task.")
]


def register(group: typer.Typer) -> None:
    """Add the commands to the group `eval`."""
    group.command(
        "figfont", epilog="Example: holdfast eval figfont --make-rows 10000 --output figfont.jsonl"
    )(figfont)
    group.command("maths", epilog="Example: holdfast eval maths -m runs/m/final --tasks amc23 --assets DIR")(
        maths
    )
    group.command(
        "lm_eval", epilog="Example: holdfast eval lm_eval -m runs/m/final --base NAME --tasks arc_easy"
    )(lm_eval)


def figfont(
    model: Model = None,
    rows: Annotated[int, typer.Option(min=1, help="Held-out words to read.")] = 500,
    words: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Words to draw, one a line; by default any letters.")
    ] = None,
    make_rows: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Write N rows to train on instead, and stop.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where --make-rows writes: a .jsonl file.")
    ] = None,
    output_dir: OutputDir = None,
    backend: BackendName = "transformers",
    model_url: ModelUrl = None,
    model_key_env: ModelKey = None,
    concurrency: Concurrency = 8,
    connect_timeout: ConnectTimeout = Deadlines.connect,
    read_timeout: ReadTimeout = Deadlines.read,
    total_timeout: TotalTimeout = Deadlines.total,
    attempts: Attempts = Retries.attempts,
    batch_size: BatchSize = 16,
    dtype: Dtype = "auto",
    chat_template: Template = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Words drawn in large letters, to be read: exact match and Jaro-Winkler; or rows to train that on."""
    from holdfast.evaluation.tasks.figfont_task import figfont_task, read_words, write_training_rows

    own = None if words is None else read_words(words)
    if make_rows is not None:
        if output is None or model is not None:
            raise ConfigError("--make-rows writes rows to --output FILE, and asks no model")
        write_training_rows(make_rows, output, seed=seed, words=own)
        typer.echo(f"{make_rows} rows in {output}; to train on them: holdfast sft MODEL {output}")
        return
    if output is not None:
        raise ConfigError("--output is the file of --make-rows; an evaluation's folder is --output-dir")
    answerer = Answerer(
        _named(model),
        backend,
        model_url,
        model_key_env,
        concurrency,
        batch_size,
        dtype,
        chat_template,
        Deadlines(connect_timeout, read_timeout, total_timeout),
        Retries(attempts=attempts),
    )
    from holdfast.cli.eval_results import finish
    from holdfast.evaluation.tasks.samples import run_task

    task = figfont_task(rows, seed=seed, words=own)
    folder = output_dir or _folder("figfont", answerer.model)
    with ExitStack() as stack:
        finish(run_task(task, answerer.open(stack), folder, seed=seed), folder, as_json)


def maths(
    model: Model = None,
    tasks: Annotated[
        str, typer.Option(help="Of gsm8k, math_500, aime24, amc23, with commas; or files of such rows.")
    ] = ALL_MATHS,
    assets: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder with the benchmarks' files; by default the hub."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers a question: the k of avg@k.")] = 16,
    temperature: Annotated[float, typer.Option(min=0, help="Of the samples; 0 needs --samples 1.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 4096,
    prompt: Annotated[
        str,
        typer.Option(help="qwen25-math-cot, qwen-boxed, no-system; or a text of your own with {question}."),
    ] = "qwen25-math-cot",
    limit: FirstQuestions = None,
    check_seconds: Annotated[float, typer.Option(help="Of computing, to check one answer.")] = 5.0,
    check_processes: Annotated[
        int | None, typer.Option(min=1, help="That check answers; by default, and at most, one a core.")
    ] = None,
    output_dir: OutputDir = None,
    backend: BackendName = "transformers",
    model_url: ModelUrl = None,
    model_key_env: ModelKey = None,
    concurrency: Concurrency = 8,
    connect_timeout: ConnectTimeout = Deadlines.connect,
    read_timeout: ReadTimeout = Deadlines.read,
    total_timeout: TotalTimeout = Deadlines.total,
    attempts: Attempts = Retries.attempts,
    batch_size: BatchSize = 16,
    dtype: Dtype = "auto",
    chat_template: Template = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Mathematics by avg@k: sampled answers, the boxed one of each compared with the reference as a formula.

    Each task has a folder of its own within the output folder.
    """
    from holdfast.cli.eval_results import finish
    from holdfast.evaluation.tasks.maths import maths_task, prompt_of
    from holdfast.evaluation.tasks.maths_questions import read_questions
    from holdfast.evaluation.tasks.samples import run_task
    from holdfast.evaluation.tasks.verifier import require_verifier

    answerer = Answerer(
        _named(model),
        backend,
        model_url,
        model_key_env,
        concurrency,
        batch_size,
        dtype,
        chat_template,
        Deadlines(connect_timeout, read_timeout, total_timeout),
        Retries(attempts=attempts),
    )
    require_verifier()
    put = prompt_of(prompt)
    sets = {}
    for name in _listed(tasks):
        found = read_questions(name, assets)
        if found.name in sets:
            raise ConfigError(
                f"--tasks: two are called '{found.name}' and would share a folder; leave one out"
            )
        sets[found.name] = maths_task(
            found,
            prompt=put,
            samples=samples,
            temperature=temperature,
            max_tokens=max_tokens,
            limit=limit,
            seconds=check_seconds,
            processes=check_processes,
        )
    if not sets:
        raise ConfigError(f"--tasks names none; the benchmarks are {ALL_MATHS}")
    folder = output_dir or _folder("maths", answerer.model)
    with ExitStack() as stack:
        generator = answerer.open(stack)
        for name, task in sets.items():
            finish(run_task(task, generator, folder / name, seed=seed), folder / name, as_json)


def lm_eval(
    model: Model = None,
    tasks: Annotated[
        str, typer.Option(help="Names of the harness's tasks, with commas; `lm_eval ls tasks` lists them.")
    ] = "",
    base: Annotated[
        str | None, typer.Option(help="The model before training: every difference to it, with intervals.")
    ] = None,
    include: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Further task files; Python they name is run.")
    ] = None,
    limit: FirstQuestions = None,
    fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples; by default each task's own number.")
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Put every question as a user's turn.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a forward.")] = 8,
    dtype: Dtype = "auto",
    output_dir: OutputDir = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Regression suites by lm-evaluation-harness: what the model could do before, it still can."""
    from holdfast.cli.eval_results import finish
    from holdfast.cli.quiet import quiet_libraries

    name = _named(model)
    quiet_libraries()
    from holdfast.evaluation.tasks.harness import Suite, run_suite

    suite = Suite(
        _listed(tasks),
        include=None if include is None else str(include),
        limit=limit,
        fewshot=fewshot,
        chat_template=apply_chat_template,
        batch_size=batch_size,
        dtype=dtype,
    )
    folder = output_dir or _folder("lm_eval", name)
    finish(run_suite(name, suite, folder, base=base, seed=seed), folder, as_json)


def _listed(names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))


def _named(model: str | None) -> str:
    if model is None:
        raise ConfigError("which model? --model FOLDER, or a hub name")
    return model


def _folder(task: str, model: str) -> Path:
    """`runs/eval-TASK-MODEL`; a run's `final` folder is named by the run."""
    path = Path(model)
    # the trained model of a run is in its `final`
    named = path.resolve().parent.name if path.name == "final" else path.name
    return Path("runs") / f"eval-{task}-{named or 'model'}"
