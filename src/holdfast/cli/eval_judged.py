"""What `holdfast eval mt_bench`, `arena_hard`, `pairwise` and `compare` do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

from holdfast.cli.eval_backend import Answerer
from holdfast.cli.eval_dry_run import show_arena_cost, show_mt_bench_cost
from holdfast.cli.eval_results import finish
from holdfast.cli.printing import drawn, say
from holdfast.cli.quiet import quiet_libraries
from holdfast.errors import ConfigError, DataError, Interrupted
from holdfast.reports import evaluation_words as words
from holdfast.reports.visible import visible

if TYPE_CHECKING:
    from holdfast.evaluation.answers.client import Settings
    from holdfast.evaluation.judged.run import Run


@dataclass(frozen=True)
class Options:
    """The options of a judged evaluation, as the command line has them."""

    assets: str
    model: str | None
    answers: Path | None
    judgments: Path | None
    judge_url: str | None
    judge_model: str | None
    judge_key_env: str | None
    judge_extra: str | None
    model_id: str | None
    output_dir: Path | None
    dry_run: bool
    rescore: bool
    limit: int | None
    judgings: int
    missing_limit: float
    concurrency: int
    connect_timeout: float
    read_timeout: float
    total_timeout: float
    attempts: int
    price_in: float | None
    price_out: float | None
    backend: str
    model_url: str | None
    model_key_env: str | None
    batch_size: int
    dtype: str
    max_tokens: int | None
    thinking: Any
    seed: int
    as_json: bool
    baseline: Sequence[Path] | None = None
    protocol: Any = None

    def __post_init__(self) -> None:
        if self.model is not None and self.answers is not None:
            raise ConfigError("--model writes answers, --answers reads them: give one of the two")
        if self.rescore and self.judge_url is not None:
            raise ConfigError("--rescore asks nobody: leave --judge-url out")
        if (self.price_in is None) != (self.price_out is None):
            raise ConfigError("a cost needs both prices: --price-in and --price-out")
        if not (self.rescore or self.dry_run or self.judge_url):
            raise ConfigError(
                "name the judge's server with --judge-url; or --rescore what is there, or --dry-run"
            )

    def name(self) -> str:
        """The model's name in the files."""
        from holdfast.evaluation.judged.names import stem_of

        if self.model_id is not None:
            return self.model_id
        if self.answers is not None:
            return self.answers.stem
        if self.model is not None:
            path = Path(self.model)
            # the trained model of a run is in its `final`
            return path.resolve().parent.name if path.name == "final" else stem_of(self.model)
        raise ConfigError("name the model: --model, --answers, or --model-id with --judgments")

    def folder(self, benchmark: str) -> Path:
        """Where everything goes."""
        return self.output_dir or Path("runs") / f"eval-{benchmark}-{self.name()}"


def show_mt_bench(options: Options) -> None:
    """Run, print and write MT-Bench."""
    from holdfast.evaluation.judged.mt_bench import JUDGE, JUDGE_SETTINGS, load_mt_bench
    from holdfast.evaluation.judged.mt_bench_run import run_mt_bench

    quiet_libraries()
    judge_model = options.judge_model or JUDGE
    bench = load_mt_bench(options.assets, judge_model, limit=options.limit)
    with _guarded(options, "mt_bench") as stack:
        run = _run(options, "mt_bench", judge_model, JUDGE_SETTINGS, stack)
        if options.dry_run:
            show_mt_bench_cost(options, bench, run)
            return
        finish(run_mt_bench(bench, run), run.folder, options.as_json)


def show_arena(options: Options) -> None:
    """Run, print and write Arena-Hard."""
    from holdfast.evaluation.judged.arena_hard import BASELINE_V01, load_arena
    from holdfast.evaluation.judged.arena_run import run_arena
    from holdfast.evaluation.judged.assets import assets_folder, find_file
    from holdfast.evaluation.judged.judgment_files import JUDGMENT_FOLDER

    quiet_libraries()
    # games that are there say what their judge was asked with
    there = sorted((options.folder("arena_hard") / JUDGMENT_FOLDER).glob("**/*.jsonl"))
    arena = load_arena(
        options.assets,
        limit=options.limit,
        protocol=options.protocol,
        judgments=there if options.judgments is None else [options.judgments, *there],
        asks=not options.rescore,
    )
    baseline = options.baseline
    if not baseline:
        folder = assets_folder(options.assets, ["model_answer/*.jsonl"])
        found = find_file(folder, [f"model_answer/{BASELINE_V01}.jsonl"])
        baseline = None if found is None else [found]
    with _guarded(options, "arena_hard") as stack:
        run = _run(options, "arena_hard", options.judge_model or arena.judge, arena.settings, stack)
        if options.dry_run:
            show_arena_cost(options, arena, run, baseline)
            return
        name = None if baseline is not None else BASELINE_V01
        finish(run_arena(arena, run, baseline, name), run.folder, options.as_json)


def show_pairwise(options: Options) -> None:
    """Run, print and write a comparison of two runs by a judge."""
    from holdfast.evaluation.judged.arena_hard import load_arena
    from holdfast.evaluation.judged.arena_run import run_pairwise

    quiet_libraries()
    if options.judge_model is None:
        raise ConfigError("name the judge with --judge-model")
    arena = load_arena(options.assets, limit=options.limit, own_prompt=True)
    assert options.baseline is not None
    (against,) = options.baseline
    with _guarded(options, "pairwise") as stack:
        run = _run(options, "pairwise", options.judge_model, arena.settings, stack)
        if options.dry_run:
            show_arena_cost(options, arena, run, options.baseline)
            return
        finish(run_pairwise(arena, run, against), run.folder, options.as_json)


def show_comparison(
    first: Path, second: Path, *, difference: float | None, html: Path | None, seed: int, as_json: bool
) -> None:
    """Compare two evaluations, print it, and write the page."""
    from holdfast.evaluation.comparison import compare
    from holdfast.evaluation.results import read_results
    from holdfast.reports.evaluation import write_flips

    folders = [place if place.is_dir() else place.parent for place in (first, second)]
    before, after = (folder.resolve().name for folder in folders)
    found = compare(
        read_results(first),
        read_results(second),
        difference=difference,
        places=(before, after) if before != after else (str(first), str(second)),
        seed=seed,
    ).as_record()
    page = write_flips(html or folders[1] / "comparison.html", found, first, second)
    if as_json:
        typer.echo(f"page: {page}", err=True)
        say(json.dumps(found, allow_nan=False))
    else:
        say("\n".join([drawn(lambda console: _lines(console, words.comparison(found))), f"page: {page}"]))


def _lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(Text(visible(line)))


# --- pieces --------------------------------------------------------------------------------------------


@contextmanager
def _guarded(options: Options, benchmark: str) -> Iterator[ExitStack]:
    """What is open in a run is closed; a signal, and a disk that refuses, become one message."""
    folder = options.folder(benchmark)
    try:
        with ExitStack() as stack:
            yield stack
    except KeyboardInterrupt as error:
        raise Interrupted(
            "the evaluation was stopped",
            f"what there is of it is in '{folder}': the same command goes on from there",
        ) from error
    except OSError as error:
        raise DataError(
            f"'{error.filename or folder}' cannot be read or written: {error.strerror or error}"
        ) from error


def _run(options: Options, benchmark: str, judge_model: str, settings: Settings, stack: ExitStack) -> Run:
    """The run that the options ask for; its servers are closed with `stack`."""
    from holdfast.cli.eval_progress import watched
    from holdfast.evaluation.answers.client import ChatClient
    from holdfast.evaluation.answers.client_settings import Deadlines, Retries
    from holdfast.evaluation.answers.openai_backend import ServerGenerator
    from holdfast.evaluation.judged.judging import Judge
    from holdfast.evaluation.judged.run import LazyGenerator, Run

    deadlines = Deadlines(options.connect_timeout, options.read_timeout, options.total_timeout)
    retries = Retries(attempts=options.attempts)
    asks = None
    if options.judge_url is not None and not options.dry_run:
        client = ChatClient(
            options.judge_url,
            judge_model,
            api_key_env=options.judge_key_env,
            concurrency=options.concurrency,
            deadlines=deadlines,
            retries=retries,
        )
        asks = watched(ServerGenerator(stack.enter_context(client)), "judgments")
    generator = None
    if options.model is not None and not options.rescore:
        answerer = Answerer(
            options.model,
            options.backend,
            options.model_url,
            options.model_key_env,
            options.concurrency,
            options.batch_size,
            options.dtype,
            deadlines=deadlines,
            retries=retries,
        )
        generator = LazyGenerator(options.model, answerer.identity, lambda: answerer.open(stack))
    return Run(
        folder=options.folder(benchmark),
        model=options.name(),
        judge=Judge(judge_model, _with_extra(settings, options.judge_extra), asks),
        generator=generator,
        answers=options.answers,
        judgments=options.judgments,
        judgings=options.judgings,
        missing_limit=options.missing_limit,
        answer_tokens=options.max_tokens,
        thinking=options.thinking,
        seed=options.seed,
    )


def _with_extra(settings: Settings, text: str | None) -> Settings:
    """Settings with the keys of a request's body that the user sets."""
    if text is None:
        return settings
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--judge-extra is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ConfigError('--judge-extra must be a JSON object: {"key": value}')
    try:
        return replace(settings, extra=found)
    except ConfigError as error:
        raise ConfigError(f"--judge-extra: {str(error).removeprefix('extra: ')}") from error
