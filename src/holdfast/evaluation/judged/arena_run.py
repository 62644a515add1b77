"""Answers, games, score: Arena-Hard against a baseline, and any two answer files against each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from holdfast.errors import DataError
from holdfast.evaluation.answers.client import Reply
from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.answers.generation_turns import Question
from holdfast.evaluation.judged.answer_files import how_made
from holdfast.evaluation.judged.arena_baselines import read_baselines
from holdfast.evaluation.judged.arena_hard import (
    ANSWER_TOKENS,
    Arena,
    ArenaAnswers,
    arena_answer_row,
    read_arena_answers,
)
from holdfast.evaluation.judged.arena_judging import (
    GameCall,
    Judged,
    game_calls,
    is_old,
    judged_rows,
    judgments_of,
    models_of,
    play,
    read_judged,
    said_by,
)
from holdfast.evaluation.judged.arena_questions import question_id
from holdfast.evaluation.judged.arena_reading import look_at
from holdfast.evaluation.judged.arena_results import arena_details, score_arena
from holdfast.evaluation.judged.arena_scores import Games
from holdfast.evaluation.judged.assets import Row, read_table
from holdfast.evaluation.judged.judging import Known, Replies, fitting, nothing_said
from holdfast.evaluation.judged.judgment_files import (
    ASIDE_FOLDER,
    JUDGMENT_FOLDER,
    REJUDGMENT_FOLDER,
    of_judge,
    write_judgments,
)
from holdfast.evaluation.judged.names import judge_path, stem_of
from holdfast.evaluation.judged.run import Run
from holdfast.evaluation.results import Results

Baseline = Path | Sequence[Path] | None


def run_arena(arena: Arena, run: Run, baseline: Baseline, baseline_name: str | None = None) -> Results:
    """Answers, games and `results.json` of one model against a baseline's answer file.

    Args:
        baseline: several where categories have their own; None where judgments are read and nothing is asked.
        baseline_name: where it is not the file's.

    Raises:
        DataError: a file is missing or of another layout.
        HoldfastError: the judge or the generator cannot be asked.
    """
    return _play_and_score(arena, run, baseline, baseline_name, lambda found: found)


def run_pairwise(arena: Arena, run: Run, other: Path, other_name: str | None = None) -> Results:
    """Two of one's own runs, both orders: `run`'s model against the answers in `other`, which play the baseline.

    The win rate leads: the strict parser's, each game once, clustered by question.
    """
    if other_name is None and other.stem == run.model:
        other_name = str(other)  # two runs of one model are told apart
    return _play_and_score(arena, run, other, other_name, partial(_as_pair, run.model))


def _as_pair(model: str, found: Results) -> Results:
    against = str(found.settings["baseline"])
    headline = found.scores[0]
    tools = ("original v0.1 tool", "current tool")  # whose benchmark this is not
    rest = [score for score in found.scores[1:] if score.name not in ("win rate", *tools)]
    if headline.value is not None:  # not withheld
        plain = [score for score in found.scores if score.name == "win rate"]
        headline = plain[0] if plain else replace(headline, value=None, interval=None)
    return replace(
        found,
        name=f"Pairwise: {model} against {against}",
        official=False,
        why_not_official=["a comparison of two runs, and no benchmark"],
        protocol=f"pairwise, two games a question, one in each order, against {against}",
        scores=[replace(headline, name=f"win rate against {against}"), *rest],
    )


def _play_and_score(
    arena: Arena,
    run: Run,
    baseline: Baseline,
    baseline_name: str | None,
    finish: Callable[[Results], Results],
) -> Results:
    """The results of the first judging are written before others are asked for."""
    judge = run.judge
    asks = judge.generator is not None
    if baseline is None and asks:
        raise DataError("no answers of a baseline to play against: name a file with --baseline")
    sides = None if baseline is None else read_baselines(baseline, arena, baseline_name)
    if sides is not None and asks and arena.protocol == "current":
        _require_all_categories(arena, sides.answers)
    answers = arena_answers(arena, run)
    answer_rows = [] if answers is None else list(answers.oddities.rows.values())
    settings, made_otherwise = how_made(answer_rows, run.answer_file, ANSWER_TOKENS)
    target = Path(JUDGMENT_FOLDER) / _place(run)
    calls: list[GameCall] = []
    if answers is not None and sides is not None:
        calls = game_calls(arena, judge, sides.answers.texts, answers.texts)
    earlier, aside = _earlier(arena, run, target), _earlier(arena, run, ASIDE_FOLDER / target)
    named = [] if run.judgments is None else _rows_of(arena, run, run.judgments, run.model, asks=asks)
    known = fitting(judgments_of(arena, [*aside, *earlier, *named]), calls, judge)
    file, imported = run.judgments, named
    if file is None and earlier and run.reads_only(calls):
        file, imported = run.folder / target, earlier
    there = {one.question for one in imported if None not in one.games}
    name, against = baseline_name or "the baseline", set[str]()
    if sides is not None:
        name, against = sides.answers.model, set(sides.names.values())
    baselines = {one.baseline for one in imported if one.baseline is not None}
    otherwise = list(made_otherwise)
    if sides is None and baselines:
        name = ", ".join(sorted(baselines))
    elif baselines - {name, *against}:
        otherwise.append(f"judgments against {', '.join(sorted(baselines))}, not all against {name}")

    def played(
        calls: Sequence[GameCall], file: Path, known: Sequence[Known], imported: Sequence[Judged]
    ) -> tuple[list[Judged], Replies]:
        """The games of calls, written into a file together with what was imported."""
        new, replies = play(arena, judge, calls, run.folder, known)
        if sides is not None:
            new = [replace(one, baseline=sides.names[one.question]) for one in new]
        if new and asks:
            both = [*(one for one in imported if one.judge == judge.model), *new]
            old = _is_old(run.folder / file, both)
            rows = judged_rows(arena, both, model=run.model, baseline=name, judge=judge.model, old=old)
            write_judgments(run.folder, file, rows, partial(_key, judge.model), said_by)
        return new, replies

    beside = _beside(arena, run, file)
    todo = [call for call in calls if call.question.id not in there]
    whole = [one for one in imported if one.question in there]
    new, replies = played(todo, target, known, whole)
    # a file's row gives way to one with more games, and to no other: the tools draw rows in their order
    had = {one.question: one.count for one in imported}
    new = [one for one in new if one.count > had.get(one.question, 0)]
    judged = {one.question for one in new}
    imported = [one for one in imported if one.question not in judged]
    rows = [*imported, *new]
    if not rows:
        what = f"no game of '{run.model}' against '{name}'"
        requests = [call.request for call in calls]
        raise DataError(nothing_said(what, judge, requests, replies, run.folder))
    read = look_at(arena, rows, calls)
    sources = [(one.judge, game.asked) for one in imported for game in one.games if game is not None]

    def scored(again: Sequence[Sequence[Judged]]) -> Results:
        departures = list(otherwise)
        record = run.judge_record(replies, sources, departures)
        results = score_arena(
            arena,
            read,
            model=run.model,
            baseline=name,
            answers=answers,
            baseline_answers=None if sides is None else sides.answers,
            judge=record,
            settings=settings,
            departures=departures,
            again=[judging for judging in again if judging],
            beside=beside | {run.model: [one.labels for one in rows]},
            missing_limit=run.missing_limit,
            seed=42 + run.seed,  # 42 is the original's
        )
        results = finish(results)
        results.write(
            run.folder, arena_details(arena, answers, None if sides is None else sides.answers, read)
        )
        return results

    results = scored([])
    if answers is None or sides is None or run.judgings == 1:
        return results
    again = []
    for judging in range(2, run.judgings + 1):
        further, more, known = asked_again(arena, run, sides.answers, answers, judging)
        games, said = played(more, further, known, [])
        again.append(games)
        replies.add(said)
    return scored(again)


def asked_again(
    arena: Arena, run: Run, baseline: ArenaAnswers, answers: ArenaAnswers, judging: int
) -> tuple[Path, list[GameCall], list[Known]]:
    """(the file of a further judging, its calls, and what the file holds of them)."""
    file = Path(REJUDGMENT_FOLDER) / _place(run).with_suffix(f".judging-{judging}.jsonl")
    calls = game_calls(arena, run.judge, baseline.texts, answers.texts, judging)
    return file, calls, fitting(judgments_of(arena, _earlier(arena, run, file)), calls, run.judge)


def _place(run: Run) -> Path:
    """Of a model's judgments by a judge."""
    return judge_path(run.judge.model) / f"{stem_of(run.model)}.jsonl"


def _require_all_categories(arena: Arena, baseline: ArenaAnswers) -> None:
    """A baseline must do for all categories; those of v2.0 have one each.

    Raises:
        DataError: it has no answer to a whole category.
    """
    answered = {question.category for question in arena.questions if question.id in baseline.texts}
    alone = sorted({question.category for question in arena.questions} - answered)
    if answered and alone:
        raise DataError(
            f"the baseline '{baseline.model}' has no answer to any question of {', '.join(alone)}: give --baseline "
            "once for each category's baseline"
        )


def arena_answers(arena: Arena, run: Run) -> ArenaAnswers | None:
    """The answers: written where there is a generator, else read; None where a rescore has none."""
    made = making_of(run)
    settings = Settings(temperature=0.0, max_tokens=made["answer_tokens"])
    by_id = {question.id: question for question in arena.questions}

    def row_of(question: Question, sample: Sequence[Reply]) -> Row:
        (reply,) = sample
        counted = None if reply.usage is None else reply.usage.completion_tokens
        return arena_answer_row(by_id[str(question.id)], run.model, reply.text, time.time(), counted)

    asked = [Question(question.id, (question.prompt,), settings) for question in arena.questions]
    run.have_answered(asked, row_of, question_id, made)
    if run.answers is None and not run.answer_file.exists():
        return None
    return read_arena_answers(run.answer_file, arena, run.model)


def making_of(run: Run) -> dict[str, Any]:
    """How Arena-Hard's answers are made; see `Run.making`."""
    return {"answer_tokens": run.answer_tokens or ANSWER_TOKENS}


def _earlier(arena: Arena, run: Run, file: Path) -> list[Judged]:
    """This model's rows by this judge that lie in the folder: of earlier runs, or of the original tool."""
    path = run.folder / file
    if not path.exists():
        return []
    rows = read_judged(path, run.model, required=False)
    return [one for one in rows if one.judge == run.judge.model and one.question not in arena.left_out]


def _rows_of(arena: Arena, run: Run, file: Path, model: str, *, asks: bool) -> list[Judged]:
    """A model's rows of a judgment file, without questions that a limit leaves out; of several judges, of the one that
    is asked for."""
    rows = of_judge(file, read_judged(file, model), run.judge.model, lambda one: one.judge, asks=asks)
    return [one for one in rows if one.question not in arena.left_out]


def _key(judge: str, place: str, row: Row) -> tuple[str, ...]:
    """What tells judgments apart: models of one last name share a file. A row that names no judge is of the one whose
    folder it is in."""
    return str(row.get("model")), str(row.get("judge", judge)), question_id(place, row)


def _is_old(file: Path, imported: Sequence[Judged]) -> bool:
    """Whether a file's rows are of the layout before April 2025, or are to be so: no tool reads both from one file."""
    rows = [row for _, row in read_table(file, "judgment")] if file.exists() else []
    rows = rows or [one.row for one in imported if one.row is not None]
    return any(map(is_old, rows))


def _beside(arena: Arena, run: Run, file: Path | None) -> dict[str, Games]:
    """The labels of all models of a judgment file, in its order, which the original draws in one table."""
    if file is None:
        return {}
    return {
        name: [one.labels for one in _rows_of(arena, run, file, name, asks=False)] for name in models_of(file)
    }
