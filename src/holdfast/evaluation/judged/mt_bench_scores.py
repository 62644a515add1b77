"""MT-Bench's score from judgment rows: FastChat's number to the digit, and a strict one beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.evaluation.judged.assets import Row
from holdfast.evaluation.judged.judging import MISSING_LIMIT, served_otherwise
from holdfast.evaluation.judged.mt_bench import JUDGE_SETTINGS, OFFICIAL_JUDGES, TURNS, MTBench, TalkAnswers
from holdfast.evaluation.judged.mt_bench_judging import Judgments, Place
from holdfast.evaluation.judged.verdict_parsers import UNPARSED, Verdict, strict_rating
from holdfast.evaluation.results import Results, Score
from holdfast.evaluation.statistics import bootstrap_mean, question_advice, rejudging_spread

PARSER_NOTE = "FastChat's parser and mean: all rows of the file, -1 left out"
STRICT_NOTE = "one rating in double brackets, 1 to 10; each judgment once"

ADVISED_DIFFERENCE = 0.2  # of ten: what most papers report as a gain


def score_mt_bench(
    bench: MTBench,
    answers: TalkAnswers | None,
    found: Judgments,
    *,
    model: str,
    judge: Mapping[str, Any],
    settings: Mapping[str, Any],
    departures: Sequence[str] = (),
    again: Sequence[Sequence[Row]] = (),
    missing_limit: float = MISSING_LIMIT,
    seed: int = 0,
) -> Results:
    """The results of one model.

    Args:
        answers: None where only judgments are at hand.
        judge: `asked` (its name), `settings` (None: not recorded), `failed` (calls, with the reasons), and what else is
            known.
        departures: from the protocol, besides those of `bench` and of the judge.
        again: rows of further judgings of the same answers.
    """
    why = [*bench.departures, *_departures(found, judge), *departures]
    if answers is None:
        why.append(
            "the answers are not at hand: whether the judge was asked the official prompts cannot be checked"
        )
    elif answers.oddities.missing:
        why.append(f"{len(answers.oddities.missing)} questions without an answer")
    strict = {place: strict_rating(row["judgment"]) for place, row in found.last.items()}
    expected = TURNS * len(bench.questions)
    unread = [place for place, row in found.last.items() if row["score"] == UNPARSED]
    rate = (len(found.missing) + len(unread)) / expected
    if MISSING_LIMIT < rate <= missing_limit:
        why.append(f"{rate:.1%} of the judgments missing or unread, above {MISSING_LIMIT:.0%}")
    name = "MT-Bench" if not why else "MT-Bench questions, custom"
    scores = [_pooled(name, found.rows, seed, PARSER_NOTE)]
    if rate > missing_limit:
        scores[0] = Score(
            name,
            None,
            note=f"withheld: {rate:.1%} of the judgments missing or unread, limit {missing_limit:.1%}",
        )
    scores += [
        _pooled(f"turn {turn}", [row for row in found.rows if row["turn"] == turn], seed, PARSER_NOTE)
        for turn in range(1, TURNS + 1)
    ]
    scores.append(_strict("strict", strict, seed))
    if again:
        scores.append(_again(found, again))
    categories: dict[str, dict[Place, Verdict[float]]] = defaultdict(dict)
    for question in bench.questions:
        for turn in range(1, TURNS + 1):
            if (question.id, turn) in strict:
                categories[question.category][question.id, turn] = strict[question.id, turn]
    questions = [_question(question.id, question.category, found, strict) for question in bench.questions]
    return Results(
        name=name,
        official=not why,
        why_not_official=why,
        model=model,
        judge={key: value for key, value in judge.items() if key != "failed"},
        protocol="FastChat llm_judge, single answer grading",
        settings=dict(settings) | {"seed": seed, "missing_limit": missing_limit},
        hashes=dict(bench.hashes) | ({} if answers is None else {"answers": answers.hash}),
        scores=scores,
        per_category=[_strict(category, verdicts, seed) for category, verdicts in categories.items()],
        missing=_missing(found, answers, strict, unread, rate)
        | {"calls_failed": dict(judge.get("failed", {}))},
        questions=questions,
        notes=[
            question_advice([q["score"] for q in questions if q["score"] is not None], ADVISED_DIFFERENCE)
        ],
    )


def _departures(found: Judgments, judge: Mapping[str, Any]) -> list[str]:
    why = served_otherwise(judge, OFFICIAL_JUDGES)
    if judge["asked"] not in OFFICIAL_JUDGES:
        why.append(f"judged by {judge['asked']}, not by {OFFICIAL_JUDGES[0]}")
    if judge.get("settings") not in (None, JUDGE_SETTINGS.as_dict()):
        why.append("judge settings other than temperature 0 and 2048 tokens")
    if found.other_prompt:
        why.append(f"{len(found.other_prompt)} judgments of another prompt or another answer")
    if found.other_score:
        why.append(f"{len(found.other_score)} stored scores that are not what the official parser reads")
    return why


def _pooled(name: str, rows: Sequence[Row], seed: int, note: str) -> Score:
    kept = [row for row in rows if row["score"] != UNPARSED]
    if not kept:
        return Score(name, None, note="no judgment with a rating")
    estimate = bootstrap_mean([row["score"] for row in kept], [row["question_id"] for row in kept], seed=seed)
    return Score.of(name, estimate, note)


def _strict(name: str, verdicts: Mapping[Place, Verdict[float]], seed: int) -> Score:
    kept = [(place, verdict.value) for place, verdict in verdicts.items() if verdict.value is not None]
    if not kept:
        return Score(name, None, note="no judgment with one clear rating")
    estimate = bootstrap_mean([value for _, value in kept], [place[0] for place, _ in kept], seed=seed)
    return Score.of(name, estimate, STRICT_NOTE)


def _again(found: Judgments, again: Sequence[Sequence[Row]]) -> Score:
    places = list(found.last)
    judgings = [
        [strict_rating(rows[place]["judgment"]).value if place in rows else None for place in places]
        for rows in (
            {(row["question_id"], row["turn"]): row for row in judging} for judging in (found.rows, *again)
        )
    ]
    if not all(any(value is not None for value in judging) for judging in judgings):
        return Score("judged again, median", None, note="a judging has no clear rating at all")
    spread = rejudging_spread(judgings)
    return Score(
        "judged again, median",
        spread.median,
        n=len(judgings),
        note=f"strict; {spread.lowest:.3f} to {spread.highest:.3f} over {len(judgings)} judgings, "
        f"{spread.changed:.1%} of the ratings changed",
    )


def _missing(
    found: Judgments,
    answers: TalkAnswers | None,
    strict: Mapping[Place, Verdict[float]],
    unread: Sequence[Place],
    rate: float,
) -> dict[str, Any]:
    reasons = {_name(place): verdict.reason for place, verdict in strict.items() if verdict.value is None}
    return {
        "rate": rate,
        "judgments_missing": list(map(_name, found.missing)),
        "judgments_twice": list(map(_name, found.twice)),
        "judgments_extra": list(map(_name, found.extra)),
        "unread_by_the_official_parser": list(map(_name, unread)),
        "unread_by_the_strict_parser": reasons,
        "stored_score_differs": list(map(_name, found.other_score)),
        "other_prompt_or_answer": list(map(_name, found.other_prompt)),
        "answers": None if answers is None else answers.oddities.as_record(),
    }


def _name(place: Place) -> str:
    return f"{place[0]}, turn {place[1]}"


def _question(
    name: int | str, category: str, found: Judgments, strict: Mapping[Place, Verdict[float]]
) -> dict[str, Any]:
    rows = {turn: found.last.get((name, turn)) for turn in range(1, TURNS + 1)}
    official = {
        turn: None if row is None or row["score"] == UNPARSED else row["score"] for turn, row in rows.items()
    }
    values = [value for value in official.values() if value is not None]
    verdicts = [strict[name, turn].value for turn in rows if (name, turn) in strict]
    clear = [value for value in verdicts if value is not None]
    return {
        "id": name,
        "category": category,
        "score": sum(values) / len(values) if values else None,
        "strict": sum(clear) / TURNS if len(clear) == TURNS else None,
        **{f"turn {turn}": value for turn, value in official.items()},
        "flags": [
            f"turn {turn}: {strict[name, turn].reason}"
            for turn in rows
            if (name, turn) in strict and strict[name, turn].value is None
        ],
    }


def talk_details(bench: MTBench, answers: TalkAnswers | None, found: Judgments) -> list[dict[str, Any]]:
    """The texts behind each question's scores, for the page."""
    details = []
    for question in bench.questions:
        blocks = []
        for turn in range(1, TURNS + 1):
            blocks.append({"title": f"Question, turn {turn}", "text": question.turns[turn - 1]})
            if answers is not None and question.id in answers.turns:
                blocks.append({"title": f"Answer, turn {turn}", "text": answers.turns[question.id][turn - 1]})
            row = found.last.get((question.id, turn))
            if row is not None:
                blocks.append({"title": f"Judge, turn {turn}: {row['score']}", "text": row["judgment"]})
        details.append({"id": question.id, "blocks": blocks})
    return details
