"""`--dry-run` of the judged evaluations: the calls that a run would still pay for, and what they cost at most."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from holdfast.cli.printing import say

if TYPE_CHECKING:
    from holdfast.cli.eval_judged import Options
    from holdfast.evaluation.answers.generation import Fail, Keep, Request
    from holdfast.evaluation.judged.arena_hard import Arena
    from holdfast.evaluation.judged.judged_run import Run
    from holdfast.evaluation.judged.mt_bench import MTBench

UNKNOWN_ANSWER = "word " * 1000  # stands for an answer that is not written yet


def show_mt_bench_cost(options: Options, bench: MTBench, run: Run) -> None:
    """Print what MT-Bench would take."""
    from holdfast.evaluation.judged.assets import Keyed
    from holdfast.evaluation.judged.judged_run import run_mt_bench, talk_answers
    from holdfast.evaluation.judged.mt_bench import TalkAnswers, rating_calls

    answers = talk_answers(bench, replace(run, generator=None))
    there = {} if answers is None else answers.turns
    lacking = [] if options.model is None else [q for q in bench.questions if q.id not in there]
    requests = []
    if answers is not None:
        requests += rehearsed(run, lambda rehearsal: run_mt_bench(bench, rehearsal))
        for judging in range(2, run.judgings + 1):
            more = rating_calls(bench, answers, run.judge, judging)
            requests += _unpaid([call.request for call in more], run)
    if lacking:
        typer.echo(_to_generate(len(lacking) * 2), err=options.as_json)
        texts = {question.id: (UNKNOWN_ANSWER, UNKNOWN_ANSWER) for question in lacking}
        unwritten = rating_calls(bench, TalkAnswers(run.model, texts, Keyed({}, [], [], [])), run.judge)
        requests += [call.request for call in unwritten] * run.judgings
    _show_cost(options, requests)


def show_arena_cost(options: Options, arena: Arena, run: Run, baseline: Path | None) -> None:
    """Print what games against a baseline would take."""
    from holdfast.evaluation.judged.arena_hard import read_arena_answers
    from holdfast.evaluation.judged.arena_judging import game_calls
    from holdfast.evaluation.judged.arena_run import arena_answers, run_arena

    unknown = {question.id: UNKNOWN_ANSWER for question in arena.questions}
    answers = arena_answers(arena, replace(run, generator=None))
    other = None if baseline is None else read_arena_answers(baseline, arena)
    if answers is None:
        typer.echo(_to_generate(len(unknown)), err=options.as_json)
    if answers is None or other is None:
        texts = unknown if other is None else other.texts
        first = game_calls(arena, run.judge, texts, unknown if answers is None else answers.texts)
        requests = [call.request for call in first] * run.judgings
    else:
        requests = rehearsed(run, lambda rehearsal: run_arena(arena, rehearsal, baseline))
        lacking = {name: text for name, text in unknown.items() if name not in answers.texts}
        if lacking and options.model is not None:  # a part was answered before
            typer.echo(_to_generate(len(lacking)), err=options.as_json)
            rest = game_calls(arena, run.judge, other.texts, lacking)
            requests += [call.request for call in rest] * run.judgings
        for judging in range(2, run.judgings + 1):
            more = game_calls(arena, run.judge, other.texts, answers.texts, judging)
            requests += _unpaid([call.request for call in more], run)
    if arena.attempts > 1:
        typer.echo(
            "a judge that gives no label is asked once more, which is not counted here", err=options.as_json
        )
    _show_cost(options, requests)


class _Counted(Exception):
    """The judge was asked: what for is known, and nothing else is of interest."""


class _Counter:
    """A `Generator` that keeps what it is asked, and answers nothing."""

    def __init__(self, model: str) -> None:
        self.model = self.identity = model
        self.asked: list[Request] = []

    def answer(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        """See `Generator`."""
        self.asked = list(requests)
        raise _Counted


def rehearsed(run: Run, go: Callable[[Run], Any]) -> list[Request]:
    """What a run's first judging would ask: it is begun in a copy of the folder, with a judge that only counts.

    So what counts as there is what the run itself takes for it, and the folder stays as it is.

    Raises:
        DataError: as `go`.
    """
    from holdfast.evaluation.judged.judging import REPLIES
    from holdfast.evaluation.judged.judgment_files import JUDGMENT_FOLDER

    counter = _Counter(run.judge.model)
    with TemporaryDirectory(prefix="holdfast-") as name:
        copy = Path(name)
        if (run.folder / REPLIES).exists():
            shutil.copyfile(run.folder / REPLIES, copy / REPLIES)
        if (run.folder / JUDGMENT_FOLDER).is_dir():
            shutil.copytree(run.folder / JUDGMENT_FOLDER, copy / JUDGMENT_FOLDER)
        judge = replace(run.judge, generator=counter)
        rehearsal = replace(
            run, folder=copy, judge=judge, generator=None, answers=run.answer_file, judgings=1
        )
        with suppress(_Counted):
            go(rehearsal)
    return counter.asked


def _unpaid(requests: Sequence[Request], run: Run) -> list[Request]:
    from holdfast.evaluation.judged.judging import unpaid

    return unpaid(requests, run.folder)


def _to_generate(answers: int) -> str:
    return (
        f"{answers} answers are to be written first; here each stands as {len(UNKNOWN_ANSWER) // 4:,} tokens"
    )


def _show_cost(options: Options, requests: Sequence[Request]) -> None:
    from holdfast.evaluation.answers.cost import Prices, estimate_cost, token_counter

    prices = None
    if options.price_in is not None and options.price_out is not None:
        prices = Prices(options.price_in, options.price_out)
    estimate = estimate_cost(requests, token_counter(), prices)
    say(json.dumps(asdict(estimate)) if options.as_json else estimate.words())
