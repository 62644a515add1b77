"""Answers, games, score: Arena-Hard against a baseline, and any two answer files against each other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.errors import DataError
from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.answers.generation_turns import Question
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
    judged_rows,
    models_of,
    play,
    read_judged,
)
from holdfast.evaluation.judged.arena_results import arena_details, look_at, score_arena
from holdfast.evaluation.judged.assets import Row, read_table
from holdfast.evaluation.judged.judged_run import JUDGMENT_FOLDER, Run
from holdfast.evaluation.judged.judging import REPLIES, Replies, adopt
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
    target = run.folder / JUDGMENT_FOLDER / stem_of(run.judge.model) / f"{stem_of(run.model)}.jsonl"
    file = _imported_file(run, target)
    imported = [] if file is None else read_judged(file, run.model)
    calls: list[GameCall] = []
    if answers is not None and other is not None:
        calls = game_calls(arena, run.judge, other.texts, answers.texts)
    if run.judge.generator is not None:
        adopt(_fitting(arena, imported, calls, run.judge.model), run.folder)
        if run.judgments is None:
            file, imported = None, []  # those that fit are in the journal now; others are of other answers
    there = {one.question for one in imported}
    baselines = {one.baseline for one in imported if one.baseline is not None}
    if other is None and len(baselines) == 1:
        name = next(iter(baselines))
    elif baselines - {name}:
        departures.append(f"judgments against {', '.join(sorted(baselines))}, not all against {name}")
    rows, replies = list(imported), Replies()
    again: list[list[Judged]] = []
    if answers is not None and other is not None:

        def as_rows(judged: Sequence[Judged]) -> list[Row]:
            return judged_rows(arena, judged, model=run.model, baseline=name, judge=run.judge.model)

        todo = [call for call in calls if call.question.id not in there]
        new, replies = play(arena, run.judge, todo, run.folder)
        rows += new
        if new:
            kept = [] if file is None else [row for _, row in read_table(file) if row["model"] == run.model]
            write_rows(target, [*kept, *as_rows(new)])
        for judging in range(2, run.judgings + 1):
            more = game_calls(arena, run.judge, other.texts, answers.texts, judging)
            again.append(play(arena, run.judge, more, run.folder)[0])
            write_rows(target.with_name(f"{target.stem}.judging-{judging}.jsonl"), as_rows(again[-1]))
    if not rows:
        reason = next(iter(replies.failed.values()), "there are neither answers of both sides nor judgments")
        raise DataError(f"no game of '{run.model}' against '{name}' is judged ({reason})")
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
        beside=_beside(file, run.model, rows),
        missing_limit=run.missing_limit,
        seed=42 + run.seed,  # 42 is the original's
    )
    return results, arena_details(arena, answers, other, read)


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


def _imported_file(run: Run, target: Path) -> Path | None:
    """Judgments that nobody has to pay for: the file that was named, or one of the original tool in the folder."""
    if run.judgments is not None:
        return run.judgments
    return target if target.exists() and not (run.folder / REPLIES).exists() else None


def _fitting(
    arena: Arena, judged: Sequence[Judged], calls: Sequence[GameCall], judge: str
) -> list[tuple[Request, str, float]]:
    """The games that answer exactly what a call asks. Of two attempts the whole text counts as one reply."""
    asked = {(call.question.id, call.game, call.messages[-1]["content"]): call.request for call in calls}
    fitting = []
    for one in judged:
        for number, game in enumerate(one.games, start=1):
            request = None if game is None else asked.get((one.question, number, game.prompt or ""))
            if game is not None and request is not None and one.judge in (None, judge):
                # the line break before each reply is the original's, and put there again
                text = game.text.removeprefix("\n") if arena.protocol == "v0.1" else game.text
                fitting.append((request, text, 0.0))
    return fitting


def _beside(
    file: Path | None, model: str, rows: Sequence[Judged]
) -> dict[str, list[tuple[str | None, str | None]]]:
    """The labels of all models of a judgment file, in its order; of this model, all rows that are there."""
    names = [model] if file is None else models_of(file)
    found = {}
    for name in names:
        own = rows if name == model or file is None else read_judged(file, name)
        found[name] = [one.labels for one in own]
    return found
