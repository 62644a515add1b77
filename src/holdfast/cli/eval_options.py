"""The options of `holdfast eval`, which several of its commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

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
        "--read-timeout", help="Seconds that a server may be silent; it is, for as long as a reply takes."
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
