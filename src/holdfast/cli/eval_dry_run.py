"""`--dry-run` of the judged evaluations: the calls that a run would still pay for, and what they cost at most."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from holdfast.cli.printing import say
from holdfast.errors import HoldfastError

if TYPE_CHECKING:
    from holdfast.cli.eval_judged import Options
    from holdfast.evaluation.answers.generation import Fail, Keep, Request
    from holdfast.evaluation.judged.arena_hard import Arena, ArenaAnswers
    from holdfast.evaluation.judged.assets import Row
    from holdfast.evaluation.judged.judging import Known
    from holdfast.evaluation.judged.mt_bench import MTBench, TalkAnswers
    from holdfast.evaluation.judged.run import Run

T = TypeVar("T")

UNKNOWN_ANSWER = "word " * 1000  # stands for an answer that is not written yet


def show_mt_bench_cost(options: Options, bench: MTBench, run: Run) -> None:
    """Print what MT-Bench would take."""
    from holdfast.evaluation.judged.mt_bench import answer_row
    from holdfast.evaluation.judged.mt_bench_run import asked_again, making_of, run_mt_bench, talk_answers

    answers = talk_answers(bench, replace(run, generator=None))
    rows = _still_there(run, answers, making_of(run))
    lacking = [] if run.generator is None else [q for q in bench.questions if q.id not in rows]
    unknown = [answer_row(question, run.model, [UNKNOWN_ANSWER] * 2, 0.0) for question in lacking]
    if lacking:
        _say_first(options, len(lacking) * 2)

    def go(rehearsal: Run) -> list[Request]:
        answers = talk_answers(bench, rehearsal)
        requests = asked(rehearsal, lambda one: run_mt_bench(bench, one))
        if answers is not None:
            for judging in range(2, run.judgings + 1):
                _, calls, known = asked_again(bench, rehearsal, answers, judging)
                requests += _unpaid([call.request for call in calls], known, rehearsal)
        return requests

    _show_cost(options, rehearsed(run, [*rows.values(), *unknown], go))


def show_arena_cost(options: Options, arena: Arena, run: Run, baseline: Sequence[Path] | None) -> None:
    """Print what games against a baseline would take."""
    from holdfast.evaluation.judged.arena_baselines import read_baselines
    from holdfast.evaluation.judged.arena_hard import arena_answer_row
    from holdfast.evaluation.judged.arena_run import arena_answers, asked_again, making_of, run_arena

    answers = arena_answers(arena, replace(run, generator=None))
    rows = _still_there(run, answers, making_of(run))
    lacking = [] if run.generator is None else [q for q in arena.questions if q.id not in rows]
    unknown = [arena_answer_row(question, run.model, UNKNOWN_ANSWER, 0.0, None) for question in lacking]
    if lacking:
        _say_first(options, len(lacking))

    def go(rehearsal: Run) -> list[Request]:
        answers = arena_answers(arena, rehearsal)
        requests = asked(rehearsal, lambda one: run_arena(arena, one, baseline))
        if answers is not None and baseline is not None:
            other = read_baselines(baseline, arena).answers
            for judging in range(2, run.judgings + 1):
                _, calls, known = asked_again(arena, rehearsal, other, answers, judging)
                requests += _unpaid([call.request for call in calls], known, rehearsal)
        return requests

    if arena.attempts > 1:
        typer.echo(
            "a judge that gives no label is asked once more, which is not counted here", err=options.as_json
        )
    _show_cost(options, rehearsed(run, [*rows.values(), *unknown], go))


def _still_there(
    run: Run, answers: TalkAnswers | ArenaAnswers | None, made: Mapping[str, Any]
) -> dict[Any, Row]:
    """The answers that a run leaves as they are: all, or, of one that has them written, those of its own making."""
    from holdfast.evaluation.judged.answer_files import made_so

    rows = {} if answers is None else {name: row for name, (_, row) in answers.oddities.rows.items()}
    if run.generator is None or not rows:  # a maker is known by all of its weights: a long read for nothing
        return rows
    making = run.making(made)
    return {name: row for name, row in rows.items() if made_so(row, making)}


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


def rehearsed(run: Run, answers: Sequence[Row], go: Callable[[Run], T]) -> T:
    """What `go` gives of a run in a copy of the folder, with these answers: what counts as there is what the run itself
    takes for it, and the folder stays as it is.

    Raises:
        DataError: as the run.
    """
    from holdfast.evaluation.judged.judging import REPLIES
    from holdfast.evaluation.judged.judgment_files import ASIDE_FOLDER, JUDGMENT_FOLDER, REJUDGMENT_FOLDER
    from holdfast.evaluation.results import write_rows

    with TemporaryDirectory(prefix="holdfast-") as name:
        copy = Path(name)
        if (run.folder / REPLIES).exists():
            shutil.copyfile(run.folder / REPLIES, copy / REPLIES)
        for part in (JUDGMENT_FOLDER, REJUDGMENT_FOLDER, ASIDE_FOLDER):
            if (run.folder / part).is_dir():
                shutil.copytree(run.folder / part, copy / part)
        file = write_rows(copy / run.answer_file.name, answers) if answers else None
        try:
            with _silent():
                return go(replace(run, folder=copy, generator=None, answers=file))
        except HoldfastError as error:  # names files of the copy
            raise type(error)(str(error).replace(str(copy), str(run.folder))) from error


def asked(rehearsal: Run, go: Callable[[Run], Any]) -> list[Request]:
    """What the run's first judging asks: it is begun with a judge that only counts."""
    counter = _Counter(rehearsal.judge.model)
    with suppress(_Counted):
        go(replace(rehearsal, judge=replace(rehearsal.judge, generator=counter), judgings=1))
    return counter.asked


@contextmanager
def _silent() -> Iterator[None]:
    """No line in the log: it would be of the copy."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _unpaid(requests: Sequence[Request], known: Sequence[Known], run: Run) -> list[Request]:
    from holdfast.evaluation.judged.judging import unpaid

    there = {one.request.key for one in known}
    return [request for request in unpaid(requests, run.folder) if request.key not in there]


def _say_first(options: Options, answers: int) -> None:
    words = (
        f"{answers} answers are to be written first; here each stands as {len(UNKNOWN_ANSWER) // 4:,} tokens"
    )
    typer.echo(words, err=options.as_json)


def _show_cost(options: Options, requests: Sequence[Request]) -> None:
    from holdfast.evaluation.answers.cost import Prices, estimate_cost, token_counter

    prices = None
    if options.price_in is not None and options.price_out is not None:
        prices = Prices(options.price_in, options.price_out)
    estimate = estimate_cost(requests, token_counter(), prices)
    say(json.dumps(asdict(estimate)) if options.as_json else estimate.words())
