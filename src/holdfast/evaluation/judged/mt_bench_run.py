"""MT-Bench of one model: answers, judgments, score."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import DataError
from holdfast.evaluation.answers.client import Reply
from holdfast.evaluation.answers.generation_turns import Question
from holdfast.evaluation.judged.answer_files import how_made
from holdfast.evaluation.judged.assets import Row
from holdfast.evaluation.judged.judging import Known, fitting, gather, nothing_said
from holdfast.evaluation.judged.judgment_files import (
    ASIDE_FOLDER,
    JUDGMENT_FOLDER,
    REJUDGMENT_FOLDER,
    of_judge,
    write_judgments,
)
from holdfast.evaluation.judged.mt_bench import (
    ANSWER_TOKENS,
    TEMPERATURES,
    MTBench,
    TalkAnswers,
    answer_row,
    generation_questions,
    read_talk_answers,
)
from holdfast.evaluation.judged.mt_bench_judging import (
    RatingCall,
    judgment_of,
    judgment_rows,
    key_of,
    look_at,
    rating_calls,
    read_judgments,
    said_by,
)
from holdfast.evaluation.judged.mt_bench_scores import score_mt_bench, talk_details
from holdfast.evaluation.judged.names import judge_path
from holdfast.evaluation.judged.run import Run
from holdfast.evaluation.results import Results


def run_mt_bench(bench: MTBench, run: Run) -> Results:
    """Answers, judgments and `results.json` of one model.

    The results of the first judging are written before others are asked for.

    Raises:
        DataError: a file is missing or of another layout.
        HoldfastError: the judge or the generator cannot be asked.
    """
    judge = run.judge
    answers = talk_answers(bench, run)
    rows_read = [] if answers is None else list(answers.oddities.rows.values())
    settings, made_otherwise = how_made(rows_read, run.answer_file, ANSWER_TOKENS)
    target = Path(JUDGMENT_FOLDER) / f"{judge_path(judge.model)}_single.jsonl"
    calls = [] if answers is None else rating_calls(bench, answers, judge)
    earlier, named = _earlier(bench, run, run.folder / target), _named(bench, run)
    aside = _earlier(bench, run, run.folder / ASIDE_FOLDER / target)
    known = fitting([judgment_of(row) for row in (*aside, *earlier, *named)], calls, judge)
    imported = named if run.judgments is not None else earlier if run.reads_only(calls) else []
    there = {(row["question_id"], row["turn"]) for row in imported}
    requests = [call.request for call in calls if call.place not in there]
    replies = gather(judge, requests, run.folder, known)
    new = judgment_rows(calls, replies, run.model, judge.model)
    rows = [*imported, *new]
    if not rows:
        raise DataError(nothing_said(f"no judgment of '{run.model}'", judge, requests, replies, run.folder))
    if new and judge.generator is not None:
        own = [row for row in imported if row["judge"][0] == judge.model]
        write_judgments(run.folder, target, [*own, *new], key_of, said_by)
    found = look_at(bench, rows, calls)
    sources = [(one.judge, one.asked) for one in map(judgment_of, imported)]

    def scored(again: Sequence[Sequence[Row]]) -> Results:
        departures = list(made_otherwise)
        record = run.judge_record(replies, sources, departures)
        results = score_mt_bench(
            bench,
            answers,
            found,
            model=run.model,
            judge=record,
            settings=settings,
            departures=departures,
            again=[judging for judging in again if judging],
            missing_limit=run.missing_limit,
            seed=run.seed,
        )
        results.write(run.folder, talk_details(bench, answers, found))
        return results

    results = scored([])
    if answers is None or run.judgings == 1:
        return results
    again = []
    for judging in range(2, run.judgings + 1):
        file, more, known = asked_again(bench, run, answers, judging)
        said = gather(judge, [call.request for call in more], run.folder, known)
        again.append(judgment_rows(more, said, run.model, judge.model))
        replies.add(said)
        if judge.generator is not None:
            write_judgments(run.folder, file, again[-1], key_of, said_by)
    return scored(again)


def asked_again(
    bench: MTBench, run: Run, answers: TalkAnswers, judging: int
) -> tuple[Path, list[RatingCall], list[Known]]:
    """(the file of a further judging, its calls, and what the file holds of them)."""
    file = Path(REJUDGMENT_FOLDER) / f"{judge_path(run.judge.model)}_single.judging-{judging}.jsonl"
    calls = rating_calls(bench, answers, run.judge, judging)
    earlier = _earlier(bench, run, run.folder / file)
    return file, calls, fitting([judgment_of(row) for row in earlier], calls, run.judge)


def talk_answers(bench: MTBench, run: Run) -> TalkAnswers | None:
    """The answers: written where there is a generator, else read; None where a rescore has none."""
    by_id = {question.id: question for question in bench.questions}

    def row_of(question: Question, sample: Sequence[Reply]) -> Row:
        return answer_row(by_id[question.id], run.model, [reply.text for reply in sample], time.time())

    made = making_of(run)
    asked = generation_questions(bench, made["answer_tokens"])
    run.have_answered(asked, row_of, bench.question_of, made)
    if run.answers is None and not run.answer_file.exists():
        return None
    return read_talk_answers(run.answer_file, bench, run.model)


def making_of(run: Run) -> dict[str, Any]:
    """How MT-Bench's answers are made; see `Run.making`."""
    return {"answer_tokens": run.answer_tokens or ANSWER_TOKENS, "temperatures": TEMPERATURES}


def _earlier(bench: MTBench, run: Run, target: Path) -> list[Row]:
    """This model's rows by this judge that lie in the folder: of earlier runs, or of the original tool."""
    if not target.exists():
        return []
    return _asked_for(bench, read_judgments(target, run.model, run.judge.model, required=False))


def _named(bench: MTBench, run: Run) -> list[Row]:
    """The rows of the file that was named; of several judges, of the one that is asked for."""
    if run.judgments is None:
        return []
    rows = read_judgments(run.judgments, run.model)
    asks = run.judge.generator is not None
    of_it = of_judge(run.judgments, rows, run.judge.model, lambda row: str(row["judge"][0]), asks=asks)
    return _asked_for(bench, of_it)


def _asked_for(bench: MTBench, rows: Sequence[Row]) -> list[Row]:
    """The rows without those of questions that a limit leaves out, ids spelled as the benchmark does."""
    spelled = [row | {"question_id": bench.id_of(row["question_id"])} for row in rows]
    return [row for row in spelled if row["question_id"] not in bench.left_out]
