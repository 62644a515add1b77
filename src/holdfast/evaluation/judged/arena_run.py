"""Answers, games, score: Arena-Hard against a baseline, and any two answer files against each other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from holdfast.errors import DataError
from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.answers.generation_turns import Question
from holdfast.evaluation.judged.arena_hard import (
    ANSWER_TOKENS,
    Arena,
    ArenaAnswers,
    arena_answer_row,
    question_id,
    read_arena_answers,
)
from holdfast.evaluation.judged.arena_judging import (
    GameCall,
    Judged,
    game_calls,
    judged_rows,
    models_of,
    play,
    read_judged,
    said_by,
)
from holdfast.evaluation.judged.arena_reading import look_at
from holdfast.evaluation.judged.arena_results import arena_details, score_arena
from holdfast.evaluation.judged.assets import Row
from holdfast.evaluation.judged.judged_run import Run
from holdfast.evaluation.judged.judging import Known, Replies, other_replies
from holdfast.evaluation.judged.judgment_files import (
    JUDGMENT_FOLDER,
    REJUDGMENT_FOLDER,
    of_judge,
    write_judgments,
)
from holdfast.evaluation.judged.mt_bench import stem_of
from holdfast.evaluation.results import Results, write_rows


def run_arena(arena: Arena, run: Run, baseline: Path | None, baseline_name: str | None = None) -> Results:
    """Answers, games and `results.json` of one model against a baseline's answer file.

    Args:
        baseline: None where judgments are read and nothing is asked.
        baseline_name: where it is not the file's.

    Raises:
        DataError: a file is missing or of another layout.
        HoldfastError: the judge or the generator cannot be asked.
    """
    results, details = _play_and_score(arena, run, baseline, baseline_name)
    results.write(run.folder, details)
    return results


def run_pairwise(arena: Arena, run: Run, other: Path, other_name: str | None = None) -> Results:
    """Two of one's own runs, both orders: `run`'s model against the answers in `other`, which play the baseline.

    The win rate leads: the strict parser's, each game once, clustered by question.
    """
    found, details = _play_and_score(arena, run, other, other_name)
    against = str(found.settings["baseline"])
    headline = found.scores[0]
    tools = ("original v0.1 tool", "current tool")  # whose benchmark this is not
    rest = [score for score in found.scores[1:] if score.name not in ("win rate", *tools)]
    if headline.value is not None:  # not withheld
        plain = [score for score in found.scores if score.name == "win rate"]
        headline = plain[0] if plain else replace(headline, value=None, interval=None)
    results = replace(
        found,
        name=f"Pairwise: {run.model} against {against}",
        official=False,
        why_not_official=["a comparison of two runs, and no benchmark"],
        protocol=f"pairwise, two games a question, one in each order, against {against}",
        scores=[replace(headline, name=f"win rate against {against}"), *rest],
    )
    results.write(run.folder, details)
    return results


def _play_and_score(
    arena: Arena, run: Run, baseline: Path | None, baseline_name: str | None
) -> tuple[Results, list[dict[str, Any]]]:
    departures: list[str] = []
    settings = run.settings(departures, ANSWER_TOKENS)
    answers = arena_answers(arena, run)
    run.keep_settings(settings, departures)
    other = None if baseline is None else read_arena_answers(baseline, arena, baseline_name)
    name = other.model if other is not None else baseline_name or "the baseline"
    if other is None and run.judge.generator is not None:
        raise DataError("no answers of a baseline to play against: name a file with --baseline")
    if other is not None and run.judge.generator is not None and arena.protocol == "current":
        _require_all_categories(arena, other)
    place = Path(stem_of(run.judge.model)) / f"{stem_of(run.model)}.jsonl"
    target = run.folder / JUDGMENT_FOLDER / place
    calls: list[GameCall] = []
    if answers is not None and other is not None:
        calls = game_calls(arena, run.judge, other.texts, answers.texts)
    earlier = _earlier(arena, run, target)
    named = [] if run.judgments is None else _rows_of(arena, run, run.judgments, run.model)
    known = _fitting(arena, [*earlier, *named], calls, run.judge.model)
    file, imported = run.judgments, named
    if file is None and earlier and run.reads_only(calls):
        file, imported = target, earlier
    there = {one.question for one in imported if None not in one.games}
    baselines = {one.baseline for one in imported if one.baseline is not None}
    if other is None and baselines:
        name = ", ".join(sorted(baselines))
    elif baselines - {name}:
        departures.append(f"judgments against {', '.join(sorted(baselines))}, not all against {name}")
    rows, replies = list(imported), Replies()
    again: list[list[Judged]] = []
    if answers is not None and other is not None:

        def as_rows(judged: Sequence[Judged]) -> list[Row]:
            return judged_rows(arena, judged, model=run.model, baseline=name, judge=run.judge.model)

        todo = [call for call in calls if call.question.id not in there]
        new, replies = play(arena, run.judge, todo, run.folder, known)
        judged = {one.question for one in new}
        imported = [one for one in imported if one.question in there or one.question not in judged]
        rows = [*imported, *(replace(one, baseline=name) for one in new)]
        asks = run.judge.generator is not None
        key = partial(_key, run.judge.model)
        if new and asks:
            kept = [one.row for one in imported if one.row is not None]
            write_judgments(run.folder, Path(JUDGMENT_FOLDER) / place, [*kept, *as_rows(new)], key, said_by)
        for judging in range(2, run.judgings + 1):
            more = game_calls(arena, run.judge, other.texts, answers.texts, judging)
            again.append(play(arena, run.judge, more, run.folder)[0])
            if asks:
                other_file = Path(REJUDGMENT_FOLDER) / place.with_suffix(f".judging-{judging}.jsonl")
                write_judgments(run.folder, other_file, as_rows(again[-1]), key, said_by)
    if not rows:
        reason = next(iter(replies.failed.values()), "there are neither answers of both sides nor judgments")
        others = other_replies([call.request for call in calls], run.folder)
        raise DataError(f"no game of '{run.model}' against '{name}' is judged ({reason}){others}")
    read = look_at(arena, rows, calls)
    results = score_arena(
        arena,
        read,
        model=run.model,
        baseline=name,
        answers=answers,
        baseline_answers=other,
        judge=run.judge_record(replies, [one.judge for one in imported], departures),
        settings=settings,
        departures=departures,
        again=[judging for judging in again if judging],
        beside=_beside(arena, run, file, rows),
        missing_limit=run.missing_limit,
        seed=42 + run.seed,  # 42 is the original's
    )
    return results, arena_details(arena, answers, other, read)


def _require_all_categories(arena: Arena, baseline: ArenaAnswers) -> None:
    """One baseline must do for all categories; those of v2.0 have one each.

    Raises:
        DataError: it has no answer to a whole category.
    """
    answered = {question.category for question in arena.questions if question.id in baseline.texts}
    alone = sorted({question.category for question in arena.questions} - answered)
    if answered and alone:
        raise DataError(
            f"the baseline '{baseline.model}' has no answer to any question of {', '.join(alone)}: one --baseline "
            "plays all categories; where each has its own, judge them one after the other into one folder, with "
            "--assets that hold the questions of one category and with its --baseline, and score the judgment file "
            "with --judgments and --rescore"
        )


def arena_answers(arena: Arena, run: Run) -> ArenaAnswers | None:
    """The answers: written where there is a generator, else read; None where a rescore has none."""
    file = run.answer_file
    if run.answers is None and run.generator is not None:
        settings = Settings(temperature=0.0, max_tokens=run.answer_tokens or ANSWER_TOKENS)
        made = run.generate([Question(q.id, (q.prompt,), settings) for q in arena.questions])
        rows = []
        for question in arena.questions:
            sample = made.answers[question.id][0]
            if sample is not None:
                (reply,) = sample
                tokens = None if reply.usage is None else reply.usage.completion_tokens
                rows.append(arena_answer_row(question, run.model, reply.text, time.time(), tokens))
        write_rows(file, rows)
    if run.answers is None and not file.exists():
        return None
    return read_arena_answers(file, arena, run.model)


def _earlier(arena: Arena, run: Run, target: Path) -> list[Judged]:
    """This model's rows by this judge that lie in the folder: of earlier runs, or of the original tool."""
    rows = read_judged(target, run.model, required=False) if target.exists() else []
    return [
        one for one in rows if one.judge in (None, run.judge.model) and one.question not in arena.left_out
    ]


def _rows_of(arena: Arena, run: Run, file: Path, model: str) -> list[Judged]:
    """A model's rows of a judgment file, without questions that a limit leaves out; of several judges, of the one that
    is asked for."""
    rows = of_judge(read_judged(file, model), run.judge.model, lambda one: one.judge)
    return [one for one in rows if one.question not in arena.left_out]


def _key(judge: str, place: str, row: Row) -> tuple[str, ...]:
    """What tells judgments apart. Models and judges of the same last name share a file; a row of the old layout names
    no judge, and is of the one whose folder it is in."""
    return str(row.get("model")), str(row.get("judge", judge)), question_id(place, row)


def _fitting(arena: Arena, judged: Sequence[Judged], calls: Sequence[GameCall], judge: str) -> list[Known]:
    """The games that answer exactly what a call asks. Of two attempts the whole text counts as one reply."""
    asked = {(call.question.id, call.game): call for call in calls}
    fitting = []
    for one in judged:
        for number, game in enumerate(one.games, start=1):
            call = asked.get((one.question, number))
            if game is None or call is None or one.judge not in (None, judge):
                continue
            if game.answers(call.messages):
                # the line break before each reply is the original's, and put there again
                text = game.text.removeprefix("\n") if arena.protocol == "v0.1" else game.text
                fitting.append((call.request, text, 0.0))
    return fitting


def _beside(
    arena: Arena, run: Run, file: Path | None, rows: Sequence[Judged]
) -> dict[str, list[tuple[str | None, str | None]]]:
    """The labels of all models of a judgment file, in its order; of this model, all rows that are there."""
    names = [run.model] if file is None else models_of(file)
    found = {}
    for name in names:
        own = rows if name == run.model or file is None else _rows_of(arena, run, file, name)
        found[name] = [one.labels for one in own]
    return found
