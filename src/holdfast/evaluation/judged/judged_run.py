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
from holdfast.evaluation.judged.assets import Row
from holdfast.evaluation.judged.judging import (
    FAILURES,
    REPLIES,
    Judge,
    Known,
    Replies,
    gather,
    other_replies,
)
from holdfast.evaluation.judged.judgment_files import (
    ERROR,
    JUDGMENT_FOLDER,
    REJUDGMENT_FOLDER,
    of_judge,
    write_judgments,
)
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

ANSWER_FOLDER = "model_answer"
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

    def reads_only(self, calls: Sequence[Any]) -> bool:
        """Whether the judgment file is all there is: nobody can be asked, and none of its replies were kept here."""
        return self.judge.generator is None and not (calls and (self.folder / REPLIES).exists())

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
            "cut_empty_replies": sum(not replies.texts[key].strip() for key in replies.cut),
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
    name = f"{stem_of(run.judge.model)}_single"
    target = Path(JUDGMENT_FOLDER) / f"{name}.jsonl"
    calls = [] if answers is None else rating_calls(bench, answers, run.judge)
    earlier, named = _earlier(bench, run, run.folder / target), _named(bench, run)
    known = _fitting([*earlier, *named], calls, run.judge.model)
    imported = named if run.judgments is not None else earlier if run.reads_only(calls) else []
    there = {(row["question_id"], row["turn"]) for row in imported}
    requests = [call.request for call in calls if (call.question.id, call.turn) not in there]
    replies = gather(run.judge, requests, run.folder, known)
    new = judgment_rows(calls, replies, run.model, run.judge.model)
    rows = [*imported, *new]
    if not rows:
        raise DataError(_nothing(run, replies, requests))
    if new and run.judge.generator is not None:
        write_judgments(run.folder, target, rows, _key, _said)
    again = []
    if answers is not None:
        for judging in range(2, run.judgings + 1):
            more = rating_calls(bench, answers, run.judge, judging)
            said = gather(run.judge, [call.request for call in more], run.folder)
            again.append(judgment_rows(more, said, run.model, run.judge.model))
            if run.judge.generator is not None:
                file = Path(REJUDGMENT_FOLDER) / f"{name}.judging-{judging}.jsonl"
                write_judgments(run.folder, file, again[-1], _key, _said)
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
    return _asked_for(bench, of_judge(rows, run.judge.model, lambda row: row["judge"][0]))


def _asked_for(bench: MTBench, rows: Sequence[Row]) -> list[Row]:
    """The rows without those of questions that a limit leaves out, ids spelled as the benchmark does."""
    spelled = [row | {"question_id": bench.id_of(row["question_id"])} for row in rows]
    return [row for row in spelled if row["question_id"] not in bench.left_out]


def _fitting(rows: Sequence[Row], calls: Sequence[RatingCall], judge: str) -> list[Known]:
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


def _key(_place: str, row: Row) -> tuple[str, ...]:
    """What tells judgments apart: several models share a file, and judges whose names end alike."""
    judge = row.get("judge")
    judge = judge[0] if isinstance(judge, list) and judge else judge
    return tuple(str(part) for part in (row.get("model"), judge, row.get("question_id"), row.get("turn")))


def _said(_place: str, row: Row) -> list[Any]:
    judgment = row.get("judgment")
    return [None if judgment == ERROR else (row.get("user_prompt"), judgment)]


def _nothing(run: Run, replies: Replies, requests: Sequence[Request]) -> str:
    reasons = list(replies.failed.values())
    if reasons:
        failures = run.folder / FAILURES
        listed = f"; see {failures}" if failures.exists() else ""
        return (
            f"no judgment of '{run.model}' by '{run.judge.model}' is there: {len(reasons)} calls have no reply "
            f"(the first: {reasons[0]}){listed}{other_replies(requests, run.folder)}"
        )
    return (
        f"'{run.folder}': neither answers nor judgments of '{run.model}'; give --answers or --judgments, or have them "
        "written with --model and --judge-url"
    )
