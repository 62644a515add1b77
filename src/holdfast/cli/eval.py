"""`holdfast eval BENCHMARK`: answers, judgments, score and page; each step goes on from what is on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from holdfast.evaluation.answers.client_settings import Deadlines, Retries

app = typer.Typer(
    name="eval",
    help="Is the result better? Benchmarks with a judge, tasks with right answers, and comparisons of two runs.",
    no_args_is_help=True,
)

Backend = Literal["transformers", "server", "vllm"]

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Who answers: a folder or hub name; with --backend server, the name to ask for."
    ),
]
Answers = Annotated[
    Path | None,
    typer.Option(
        "--answers", metavar="FILE", help="Answers that are there: a file of the original tool, or ours."
    ),
]
Assets = Annotated[
    str,
    typer.Option(
        "--assets",
        metavar="DIR",
        help="Questions, references and judge prompts: a folder, or a hub data set.",
    ),
]
JudgeUrl = Annotated[
    str | None,
    typer.Option("--judge-url", help="The judge's server, any that speaks OpenAI's: http://host/v1"),
]
JudgeModel = Annotated[
    str | None,
    typer.Option("--judge-model", help="The judge's name.", show_default="the benchmark's own judge"),
]
JudgeKey = Annotated[
    str | None,
    typer.Option(
        "--judge-key-env", metavar="NAME", help="The environment variable that holds the judge's key."
    ),
]
JudgeExtra = Annotated[
    str | None,
    typer.Option(
        "--judge-extra",
        metavar="JSON",
        help='Keys of the judge\'s requests; null leaves one out: {"max_tokens": null, "max_completion_tokens": 2048}. '
        "With --rescore too.",
    ),
]
Judgments = Annotated[
    Path | None,
    typer.Option(
        "--judgments", metavar="FILE", help="Judgments that are there: a file of the original tool, or ours."
    ),
]
ModelId = Annotated[
    str | None,
    typer.Option(
        "--model-id", help="The model's name in the files.", show_default="the file's or model's name"
    ),
]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        "-o",
        metavar="FOLDER",
        help="Where everything goes.",
        show_default="runs/eval-BENCHMARK-MODEL",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what calls, tokens and cost it would take, and stop.")
]
Rescore = Annotated[bool, typer.Option("--rescore", help="Score what is there; ask nobody, load no model.")]
Limit = Annotated[int | None, typer.Option(min=1, help="So many questions only, spread over the benchmark.")]
Judgings = Annotated[
    int, typer.Option(min=1, max=100, help="Times each judgment is asked for; the spread is shown.")
]
MissingLimit = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Share of judgments that may be missing before the headline is withheld."
    ),
]
Concurrency = Annotated[int, typer.Option(min=1, help="Calls under way at once.")]
ConnectTimeout = Annotated[
    float, typer.Option("--connect-timeout", help="Seconds until a server must take the connection.")
]
ReadTimeout = Annotated[
    float,
    typer.Option(
        "--read-timeout", help="Seconds that a server may be silent; it is, for as long as a judgment takes."
    ),
]
TotalTimeout = Annotated[
    float, typer.Option("--total-timeout", help="Seconds that one attempt of a call may take in all.")
]
Attempts = Annotated[
    int,
    typer.Option("--attempts", help="Times that a call is tried in all, longer waits in between; 1 to 100."),
]
PriceIn = Annotated[float | None, typer.Option(help="What the judge takes for a million tokens it reads.")]
PriceOut = Annotated[float | None, typer.Option(help="What the judge takes for a million tokens it writes.")]
BackendName = Annotated[Backend, typer.Option("--backend", help="What runs the model that answers.")]
ModelUrl = Annotated[str | None, typer.Option("--model-url", help="Its server, with --backend server.")]
ModelKey = Annotated[
    str | None,
    typer.Option("--model-key-env", metavar="NAME", help="The variable that holds that server's key."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Answers written side by side.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Of the weights; auto: the checkpoint's."),
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Of an answer; by default the benchmark's.")
]
Thinking = Annotated[
    Literal["keep", "strip"],
    typer.Option(help="<think> blocks in answers: strip takes them out before judging."),
]
Seed = Annotated[int, typer.Option(help="Of sampled answers and of every interval.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print results.json and nothing else.")]


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
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The baseline's answers.",
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

    given["baseline"] = given.pop("against")  # it plays the baseline
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
