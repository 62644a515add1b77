"""MT-Bench's judgments: what its judge is asked, and FastChat's judgment files.

One call a turn; the second turn's shows the whole talk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from holdfast.errors import DataError
from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.judged.assets import JudgePrompt, Row, field_of, read_table, text_of
from holdfast.evaluation.judged.judging import Judge, Judgment, Replies, is_of
from holdfast.evaluation.judged.judgment_files import ASKED_WITH, ERROR, asked_with
from holdfast.evaluation.judged.mt_bench import TURNS, MTBench, TalkAnswers, TalkQuestion
from holdfast.evaluation.judged.verdict_parsers import LARGEST, fastchat_rating

Place = tuple[Any, int]  # question, turn


@dataclass(frozen=True)
class RatingCall:
    """One turn of one question to be rated."""

    question: TalkQuestion
    turn: int
    prompt: JudgePrompt
    messages: list[dict[str, str]]
    request: Request

    @property
    def place(self) -> Place:
        """Which turn of which question."""
        return self.question.id, self.turn


def rating_calls(bench: MTBench, answers: TalkAnswers, judge: Judge, judging: int = 1) -> list[RatingCall]:
    """Two calls a question that has an answer; `judging` counts the times that the same is asked."""
    calls = []
    for turn in range(1, TURNS + 1):
        for question in bench.questions:
            if question.id not in answers.turns:
                continue
            prompt = bench.prompt_of(question, turn)
            messages = prompt.messages(_values(bench, question, answers.turns[question.id]))
            request = judge.request(messages, question.id, turn, prompt.name, judging)
            calls.append(RatingCall(question, turn, prompt, messages, request))
    return calls


def _values(bench: MTBench, question: TalkQuestion, answer: tuple[str, str]) -> dict[str, str]:
    reference = bench.references.get(question.id, ("", ""))
    return {
        "question": question.turns[0],
        "answer": answer[0],
        "question_1": question.turns[0],
        "question_2": question.turns[1],
        "answer_1": answer[0],
        "answer_2": answer[1],
        "ref_answer_1": reference[0],
        "ref_answer_2": reference[1],
    }


def judgment_rows(calls: Sequence[RatingCall], replies: Replies, model: str, judge: str) -> list[Row]:
    """Rows of FastChat's judgment file, for the calls that have a reply."""
    rows: list[Row] = []
    for call in calls:
        key = call.request.key
        if key not in replies.texts:
            continue
        row: Row = {
            "question_id": call.question.id,
            "model": model,
            "judge": [judge, call.prompt.name],
            "user_prompt": call.messages[-1]["content"],
            "judgment": replies.texts[key],
            "score": fastchat_rating(replies.texts[key]),
            "turn": call.turn,
            "tstamp": replies.times[key],
        }
        asked = replies.asked_with[key]
        if asked is not None:
            row[ASKED_WITH] = replace(asked, system=call.prompt.system).as_row()
        rows.append(row)
    return rows


# --- files ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgments:
    """A model's rows of a judgment file, and what is odd about them.

    Attributes:
        rows: of this model, in the order of the file, those of no known question too.
        last: the last row of each (question, turn) of the benchmark.
        twice, extra, missing: places with several rows, of no question, without a row.
        other_score: places whose stored score is not what the official parser reads from the stored text.
        other_prompt: places whose prompt is not what this benchmark asks about this answer.
    """

    rows: Sequence[Row]
    last: Mapping[Place, Row]
    twice: Sequence[Place]
    extra: Sequence[Place]
    missing: Sequence[Place]
    other_score: Sequence[Place]
    other_prompt: Sequence[Place]


def read_judgments(
    path: str | Path, model: str, judge: str | None = None, *, required: bool = True
) -> list[Row]:
    """A model's rows of FastChat's judgment file (`JUDGE_single.jsonl`), of one judge where it is named.

    Rows of `$ERROR$`, which FastChat writes where the judge gave no reply, are no judgments, and left out.

    Raises:
        DataError: a line is of another layout; or no row is this model's, and one is required.
    """
    rows, models, any_row = [], set(), False
    for place, row in read_table(path, "judgment"):
        models.add(text_of(place, row, "model"))
        if row["model"] != model:
            continue
        if not isinstance(field_of(place, row, "judge"), list):
            raise DataError(f"{place}: 'judge' must be a list of the judge's name and the prompt's")
        if text_of(place, row, "judge", 0) != judge and judge is not None:
            continue
        text_of(place, row, "judgment")
        asked_with(place, row)
        name, score, turn = (field_of(place, row, key) for key in ("question_id", "score", "turn"))
        if not isinstance(name, int | str):
            raise DataError(f"{place}: 'question_id' must be a number or a text, not {name!r}")
        if isinstance(score, bool) or not isinstance(score, int | float) or not -LARGEST < score < LARGEST:
            raise DataError(f"{place}: 'score' must be a number, not {score!r}; -1 stands for none")
        if type(turn) is not int or not 1 <= turn <= TURNS:
            raise DataError(f"{place}: 'turn' must be 1 or 2, not {turn!r}")
        any_row = True
        if row["judgment"] != ERROR:
            rows.append(row)
    if required and not any_row:
        known = ", ".join(sorted(models)) or "nobody"
        raise DataError(
            f"'{path}': no judgments of '{model}'{f' by {judge}' if judge else ''}; it has those of {known}"
        )
    return rows


def judgment_of(row: Row) -> Judgment:
    """What a row that `read_judgments` gave holds."""
    asked, at = asked_with("", row), row.get("tstamp")
    return Judgment(
        place=(row["question_id"], row["turn"]),
        judge=row["judge"][0],
        prompt=str(row.get("user_prompt")),
        system=None if asked is None else asked.system,
        text=row["judgment"],
        tstamp=float(at) if isinstance(at, int | float) and 0 <= at < LARGEST else 0.0,
        asked=asked,
    )


def key_of(_place: str, row: Row) -> tuple[str, ...]:
    """What tells rows apart: several models share a file, and several judges may."""
    judge = row.get("judge")
    judge = judge[0] if isinstance(judge, list) and judge else judge
    return tuple(str(part) for part in (row.get("model"), judge, row.get("question_id"), row.get("turn")))


def said_by(_place: str, row: Row) -> list[Any]:
    """What a row says, and to what; None for a reply that is not there."""
    judgment = row.get("judgment")
    return [None if judgment == ERROR else (row.get("user_prompt"), judgment)]


def look_at(bench: MTBench, rows: Sequence[Row], calls: Sequence[RatingCall]) -> Judgments:
    """Rows held against the benchmark, and against what it would ask (`calls`; of answers that are there)."""
    places = [(question.id, turn) for turn in range(1, TURNS + 1) for question in bench.questions]
    asked = {call.place: call.messages for call in calls}
    last = {(row["question_id"], row["turn"]): row for row in rows}
    count = Counter((row["question_id"], row["turn"]) for row in rows)
    return Judgments(
        rows=rows,
        last={place: last[place] for place in places if place in last},
        twice=[place for place, times in count.items() if times > 1],
        extra=[place for place in last if place not in set(places)],
        missing=[place for place in places if place not in last],
        other_score=[
            place for place, row in last.items() if fastchat_rating(row["judgment"]) != row["score"]
        ],
        other_prompt=[
            place
            for place, messages in asked.items()
            if place in last and not is_of(judgment_of(last[place]), messages)
        ],
    )
