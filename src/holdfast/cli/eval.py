"""`holdfast eval BENCHMARK`: answers, judgments, score and page; each step goes on from what is on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from holdfast.cli.eval_options import (
    Answers,
    AsJson,
    Assets,
    Attempts,
    BackendName,
    BatchSize,
    Concurrency,
    ConnectTimeout,
    DryRun,
    Dtype,
    JudgeExtra,
    JudgeKey,
    JudgeModel,
    JudgeUrl,
    Judgings,
    Judgments,
    Limit,
    MaxTokens,
    MissingLimit,
    Model,
    ModelId,
    ModelKey,
    ModelUrl,
    OutputDir,
    PriceIn,
    PriceOut,
    ReadTimeout,
    Rescore,
    Seed,
    Thinking,
    TotalTimeout,
)
from holdfast.evaluation.answers.client_settings import Deadlines, Retries

app = typer.Typer(
    name="eval",
    help="Is the result better? Benchmarks with a judge, tasks with right answers, and comparisons of two runs.",
    no_args_is_help=True,
)


@app.command(
    "mt_bench", epilog="Example: holdfast eval mt_bench -m runs/align/final --assets DIR --judge-url URL"
)
def mt_bench(
    assets: Assets,
    model: Model = None,
    answers: Answers = None,
    judgments: Judgments = None,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_key_env: JudgeKey = None,
    judge_extra: JudgeExtra = None,
    model_id: ModelId = None,
    output_dir: OutputDir = None,
    dry_run: DryRun = False,
    rescore: Rescore = False,
    limit: Limit = None,
    judgings: Judgings = 1,
    missing_limit: MissingLimit = 0.05,
    concurrency: Concurrency = 8,
    connect_timeout: ConnectTimeout = Deadlines.connect,
    read_timeout: ReadTimeout = Deadlines.read,
    total_timeout: TotalTimeout = Deadlines.total,
    attempts: Attempts = Retries.attempts,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    backend: BackendName = "transformers",
    model_url: ModelUrl = None,
    model_key_env: ModelKey = None,
    batch_size: BatchSize = 16,
    dtype: Dtype = "auto",
    max_tokens: MaxTokens = None,
    thinking: Thinking = "keep",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """MT-Bench: 80 questions of two turns, each answer rated from 1 to 10."""
    given = dict(locals())
    from holdfast.cli.eval_judged import Options, show_mt_bench

    show_mt_bench(Options(**given))


@app.command(
    "arena_hard", epilog="Example: holdfast eval arena_hard --answers FILE --baseline FILE --assets DIR ..."
)
def arena_hard(
    assets: Assets,
    model: Model = None,
    answers: Answers = None,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="The baseline's answers; once for each where categories have their own.",
            show_default="gpt-4-0314's in the assets' model_answer",
        ),
    ] = None,
    protocol: Annotated[
        Literal["v0.1", "current"] | None,
        typer.Option(
            help="Whose parser and score lead.", show_default="what the judge's configuration is of"
        ),
    ] = None,
    judgments: Judgments = None,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_key_env: JudgeKey = None,
    judge_extra: JudgeExtra = None,
    model_id: ModelId = None,
    output_dir: OutputDir = None,
    dry_run: DryRun = False,
    rescore: Rescore = False,
    limit: Limit = None,
    judgings: Judgings = 1,
    missing_limit: MissingLimit = 0.05,
    concurrency: Concurrency = 8,
    connect_timeout: ConnectTimeout = Deadlines.connect,
    read_timeout: ReadTimeout = Deadlines.read,
    total_timeout: TotalTimeout = Deadlines.total,
    attempts: Attempts = Retries.attempts,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    backend: BackendName = "transformers",
    model_url: ModelUrl = None,
    model_key_env: ModelKey = None,
    batch_size: BatchSize = 16,
    dtype: Dtype = "auto",
    max_tokens: MaxTokens = None,
    thinking: Thinking = "keep",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Arena-Hard: each answer against a baseline's, in both orders."""
    given = dict(locals())
    from holdfast.cli.eval_judged import Options, show_arena

    show_arena(Options(**given))


@app.command(
    "pairwise",
    epilog="Example: holdfast eval pairwise --answers runs/b/... --against runs/a/... --assets DIR",
)
def pairwise(
    assets: Assets,
    against: Annotated[Path, typer.Option(metavar="FILE", help="The other run's answers.")],
    model: Model = None,
    answers: Answers = None,
    judgments: Judgments = None,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_key_env: JudgeKey = None,
    judge_extra: JudgeExtra = None,
    model_id: ModelId = None,
    output_dir: OutputDir = None,
    dry_run: DryRun = False,
    rescore: Rescore = False,
    limit: Limit = None,
    judgings: Judgings = 1,
    missing_limit: MissingLimit = 0.05,
    concurrency: Concurrency = 8,
    connect_timeout: ConnectTimeout = Deadlines.connect,
    read_timeout: ReadTimeout = Deadlines.read,
    total_timeout: TotalTimeout = Deadlines.total,
    attempts: Attempts = Retries.attempts,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    backend: BackendName = "transformers",
    model_url: ModelUrl = None,
    model_key_env: ModelKey = None,
    batch_size: BatchSize = 16,
    dtype: Dtype = "auto",
    max_tokens: MaxTokens = None,
    thinking: Thinking = "keep",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Two of your own runs on the same questions: the win rate, in both orders, by a judge prompt of holdfast's."""
    given = dict(locals())
    from holdfast.cli.eval_judged import Options, show_pairwise

    given["baseline"] = [given.pop("against")]  # it plays the baseline
    show_pairwise(Options(**given))


@app.command(
    "compare", epilog="Example: holdfast eval compare runs/eval-before runs/eval-after --difference 0.2"
)
def compare(
    first: Annotated[Path, typer.Argument(metavar="BEFORE", help="An evaluation's folder.")],
    second: Annotated[Path, typer.Argument(metavar="AFTER", help="Another's, of the same questions.")],
    difference: Annotated[
        float | None, typer.Option(min=0, help="Say how many questions would show a difference of this size.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="The page.", show_default="comparison.html in AFTER")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Two evaluations paired by question: the difference, its interval, and the questions that flipped."""
    from holdfast.cli.eval_judged import show_comparison

    show_comparison(first, second, difference=difference, html=html, seed=seed, as_json=as_json)
