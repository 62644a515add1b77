"""Answers, judgments, score: what the runs of all judged benchmarks share, and MT-Bench's.

Each step takes what is on the disk and adds what is missing, so that a run can be stopped anywhere. The folder is laid
out as the original tools' data folders: `model_answer/MODEL.jsonl`, `model_judgment/...`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.answers.generation import Fail, Generator, Keep, Request
from holdfast.evaluation.answers.generation_turns import Generated, Question, Thinking, generate
from holdfast.evaluation.judged.assets import Row, field_of, read_table
from holdfast.evaluation.judged.judging import REPLIES, Judge, Replies, adopt, gather
from holdfast.evaluation.judged.mt_bench import (
    ANSWER_TOKENS,
    TEMPERATURES,
    MTBench,
    RatingCall,
    TalkAnswers,
    answer_row,
    generation_questions,
    judgment_rows,
    rating_calls,
    read_talk_answers,
    stem_of,
)
from holdfast.evaluation.judged.mt_bench_scores import (
    MISSING_LIMIT,
    look_at,
    read_judgments,
    score_mt_bench,
    talk_details,
)
from holdfast.evaluation.judged.verdict_parsers import LARGEST
from holdfast.evaluation.results import Results, write_rows
from holdfast.files import replacing

ANSWER_FOLDER, JUDGMENT_FOLDER = "model_answer", "model_judgment"
GENERATION_FOLDER, MADE = "generation", "settings.json"


class LazyGenerator:
    """A `Generator` that is made when something is asked of it: a run that only goes on with judging loads no model."""

    def __init__(self, name: str, identify: Callable[[], str], make: Callable[[], Generator]) -> None:
        self._name = name
        self._identify = identify
        self._make = make
        self._made: Generator | None = None

    @property
    def model(self) -> str:
        """Its name."""
        return self._name

    @cached_property
    def identity(self) -> str:
        """See `Generator`; found out when it is asked for."""
        return self._identify()

    def answer(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        """See `Generator`."""
        if self._made is None:
            self._made = self._make()
        self._made.answer(requests, keep, fail)


@dataclass(frozen=True)
class Run:
    """What a judged run is told.

    Attributes:
        folder: where everything goes.
        model: the name in the files.
        judge: who judges; without a generator nothing is asked (a rescore).
        generator: writes the answers; None: they are in `answers`, or in the folder.
        answers: an answer file of the original tool, or of this one.
        judgments: a judgment file of the original tool, whose rows are not paid for again.
        judgings: times that the judge is asked the same.
        missing_limit: share of judgments that may be missing before a headline is withheld.
        answer_tokens: at most, of a generated answer; None: the benchmark's.
        thinking: whether `<think>` blocks are kept in answers.
    """

    folder: Path
    model: str
    judge: Judge
    generator: Generator | None = None
    answers: Path | None = None
    judgments: Path | None = None
    judgings: int = 1
    missing_limit: float = MISSING_LIMIT
    answer_tokens: int | None = None
    thinking: Thinking = "keep"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.judgings <= 100:
            raise ConfigError(f"judgings must be 1 to 100, not {self.judgings}")
        if not 0 <= self.missing_limit <= 1:
            raise ConfigError(f"the missing limit is a share from 0 to 1, not {self.missing_limit}")

    @property
    def answer_file(self) -> Path:
        """Where the answers are, or will be."""
        return self.answers or self.folder / ANSWER_FOLDER / f"{stem_of(self.model)}.jsonl"

    def generate(self, questions: Sequence[Question]) -> Generated:
        """Have the questions answered, as far as they are not."""
        assert self.generator is not None
        folder = self.folder / GENERATION_FOLDER / stem_of(self.model)
        return generate(self.generator, questions, folder, seed=self.seed, thinking=self.thinking)

    def settings(self, departures: list[str], official_tokens: int) -> dict[str, Any]:
        """Of the answers, for the record; what departs from the benchmark's is added to `departures`."""
        if self.generator is None:
            if self._made.is_file():
                record = _read_made(self._made)
                departures += record["departures"]
                return dict(record["settings"])
            return {"answers": f"read from {self.answer_file.name}; how they were made is not recorded"}
        tokens = self.answer_tokens or official_tokens
        if tokens != official_tokens:
            departures.append(f"answers of at most {tokens} tokens, not {official_tokens}")
        if self.thinking != "keep":
            departures.append("<think> blocks taken out of the answers")
        return {
            "generator": self.generator.model,
            "answer_tokens": tokens,
            "thinking": self.thinking,
            "generation_seed": self.seed,
        }

    def keep_settings(self, settings: Mapping[str, Any], departures: Sequence[str]) -> None:
        """Leave beside answers that were written here how they were, for runs that read them."""
        if self.generator is not None:
            with replacing(self._made) as beside:
                record = {"settings": dict(settings), "departures": list(departures)}
                beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    @property
    def _made(self) -> Path:
        file = self.answer_file
        return file.parent.parent / GENERATION_FOLDER / file.stem / MADE

    def judge_record(
        self, replies: Replies, imported: Sequence[str | None], departures: list[str]
    ) -> dict[str, Any]:
        """What is known of the judge, for the record; several of them are added to `departures`.

        Args:
            imported: the judge of each judgment that was read from a file, None where it does not say.
        """
        own = len(replies.texts) > replies.imported or not (imported or replies.imported)
        named = {self.judge.model} if replies.texts or not imported else set()
        judges = {name for name in imported if name is not None} | named
        if len(judges) > 1:
            departures.append(f"judgments of several judges: {', '.join(sorted(judges))}")
        return {
            "asked": judges.pop() if len(judges) == 1 else self.judge.model,
            "served": replies.served,
            "settings": self.judge.settings.as_dict() if own else None,
            "imported_judgments": len(imported) + replies.imported,
            "judgings": self.judgings,
            "cut_replies": len(replies.cut),
            "failed": {", ".join(map(str, key[:2])): reason for key, reason in replies.failed.items()},
        }


def run_mt_bench(bench: MTBench, run: Run) -> Results:
    """Answers, judgments and `results.json` of one model.

    Raises:
        DataError: a file is missing or of another layout.
        HoldfastError: the judge or the generator cannot be asked.
    """
    departures: list[str] = []
    settings = run.settings(departures, ANSWER_TOKENS)
    if run.generator is not None:
        settings["temperatures"] = TEMPERATURES
    answers = talk_answers(bench, run)
    run.keep_settings(settings, departures)
    target = run.folder / JUDGMENT_FOLDER / f"{stem_of(run.judge.model)}_single.jsonl"
    calls = [] if answers is None else rating_calls(bench, answers, run.judge)
    imported = _imported(run, target)
    if run.judge.generator is not None:
        adopt(_fitting(imported, calls, run.judge.model), run.folder)
        if run.judgments is None:
            imported = []  # those that fit are in the journal now; others are of other answers
    there = {(row["question_id"], row["turn"]) for row in imported}
    replies = gather(
        run.judge,
        [call.request for call in calls if (call.question.id, call.turn) not in there],
        run.folder,
    )
    new = judgment_rows(calls, replies, run.model, run.judge.model)
    rows = [*imported, *new]
    if not rows:
        raise DataError(_nothing(run, replies))
    if new:
        _write_beside_others(target, rows, run.model)
    again = []
    if answers is not None:
        for judging in range(2, run.judgings + 1):
            more = rating_calls(bench, answers, run.judge, judging)
            said = gather(run.judge, [call.request for call in more], run.folder)
            again.append(judgment_rows(more, said, run.model, run.judge.model))
            write_rows(target.with_name(f"{target.stem}.judging-{judging}.jsonl"), again[-1])
    found = look_at(bench, rows, calls)
    results = score_mt_bench(
        bench,
        answers,
        found,
        model=run.model,
        judge=run.judge_record(replies, [row["judge"][0] for row in imported], departures),
        settings=settings,
        departures=departures,
        again=[judging for judging in again if judging],
        missing_limit=run.missing_limit,
        seed=run.seed,
    )
    results.write(run.folder, talk_details(bench, answers, found))
    return results


def _read_made(path: Path) -> dict[str, Any]:
    """What `Run.keep_settings` wrote.

    Raises:
        DataError: somebody else wrote it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found["settings"], dict) and isinstance(found["departures"], list):
            return dict(found)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise DataError(
        f"'{path}': says not how the answers were made; remove it, and they count as made by others"
    )


def talk_answers(bench: MTBench, run: Run) -> TalkAnswers | None:
    """The answers: written where there is a generator, else read; None where a rescore has none."""
    file = run.answer_file
    if run.answers is None and run.generator is not None:
        made = run.generate(generation_questions(bench, run.answer_tokens or ANSWER_TOKENS))
        rows = [
            answer_row(question, run.model, [reply.text for reply in sample], time.time())
            for question in bench.questions
            if (sample := made.answers[question.id][0]) is not None
        ]
        write_rows(file, rows)
    if run.answers is None and not file.exists():
        return None
    return read_talk_answers(file, bench, run.model)


def _imported(run: Run, target: Path) -> list[Row]:
    """Rows that nobody has to pay for: of the file that was named, or one of the original tool in the folder."""
    if run.judgments is not None:
        return read_judgments(run.judgments, run.model)
    if target.exists() and not (run.folder / REPLIES).exists():
        return read_judgments(target, run.model, run.judge.model)
    return []


def _fitting(
    rows: Sequence[Row], calls: Sequence[RatingCall], judge: str
) -> list[tuple[Request, str, float]]:
    """The judgments that answer exactly what a call asks."""
    asked = {(call.question.id, call.turn, call.messages[-1]["content"]): call.request for call in calls}
    fitting = []
    for row in rows:
        request = asked.get((row["question_id"], row["turn"], str(row.get("user_prompt"))))
        if request is not None and row["judge"][0] == judge:
            at = row.get("tstamp")
            tstamp = float(at) if isinstance(at, int | float) and 0 <= at < LARGEST else 0.0
            fitting.append((request, row["judgment"], tstamp))
    return fitting


def _write_beside_others(target: Path, rows: Sequence[Row], model: str) -> None:
    """A judgment file of FastChat's is of a judge, and may hold several models' rows."""
    others = []
    if target.exists():
        others = [row for place, row in read_table(target) if field_of(place, row, "model") != model]
    write_rows(target, [*others, *rows])


def _nothing(run: Run, replies: Replies) -> str:
    reasons = list(replies.failed.values())
    if reasons:
        return (
            f"no judgment of '{run.model}' by '{run.judge.model}' is there: {len(reasons)} calls have "
            f"no reply (the first: {reasons[0]}); see {run.folder / 'failures.jsonl'}"
        )
    return (
        f"'{run.folder}': neither answers nor judgments of '{run.model}'; give --answers or --judgments, or have them "
        "written with --model and --judge-url"
    )
