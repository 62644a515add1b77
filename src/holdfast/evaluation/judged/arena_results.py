"""Arena-Hard's results from judged games: both tools' scores by name, a strict and a clustered one, equal style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.evaluation.judged.arena_baselines import (
    OFFICIAL_BASELINES,
    baselines_of,
    listed,
    scores_by_category,
    tool_score,
)
from holdfast.evaluation.judged.arena_config import JUDGE_SETTINGS_V01, JUDGE_V01
from holdfast.evaluation.judged.arena_hard import BASELINE_V01, Arena, ArenaAnswers
from holdfast.evaluation.judged.arena_judging import Judged
from holdfast.evaluation.judged.arena_own_scores import (
    judged_again,
    own_scores,
    strict_by_category,
    strict_labels,
    styled_scores,
)
from holdfast.evaluation.judged.arena_reading import Read
from holdfast.evaluation.judged.arena_scores import Games, current_score, original_scores, plain_outcomes
from holdfast.evaluation.judged.judging import MISSING_LIMIT, served_otherwise
from holdfast.evaluation.judged.verdict_parsers import strict_label
from holdfast.evaluation.results import Results, Score
from holdfast.evaluation.statistics import question_advice

ADVISED_DIFFERENCE = 0.05  # of a question's win rate

# Of the content of the official v0.1 baseline's answers.
OFFICIAL_BASELINE = "dcc99358236f6e863c67b62cad9e1737835b94a7b67611864bfdd2e1693396cc"


def score_arena(
    arena: Arena,
    read: Read,
    *,
    model: str,
    baseline: str,
    answers: ArenaAnswers | None,
    baseline_answers: ArenaAnswers | None,
    judge: Mapping[str, Any],
    settings: Mapping[str, Any],
    departures: Sequence[str] = (),
    again: Sequence[Sequence[Judged]] = (),
    beside: Mapping[str, Games] | None = None,
    missing_limit: float = MISSING_LIMIT,
    seed: int = 42,
) -> Results:
    """The results of one model against one baseline.

    Args:
        answers, baseline_answers: None where only judgments are at hand.
        judge: `asked` (its name), `settings` (None: not recorded), `failed` (calls, with the reasons), and what else is
            known.
        beside: all models of one file, this one too, in its order: the original draws them in one table.
    """
    against = baselines_of(arena, read.last, baseline)
    differ = len(set().union(*against.values())) > 1
    why = [*arena.departures, *_departures(arena, read, judge, against, baseline_answers), *departures]
    if answers is None or baseline_answers is None:
        why.append(
            "the answers are not at hand: whether the judge was asked the official prompts cannot be checked"
        )
    labels = [one.labels for one in read.rows]
    strict = {name: strict_labels(one) for name, one in read.last.items()}
    rate = (len(read.missing) + len(read.unread)) / len(arena.questions)
    if MISSING_LIMIT < rate <= missing_limit:
        why.append(f"{rate:.1%} of the questions missing or unread, above {MISSING_LIMIT:.0%}")
    name = "Arena-Hard v0.1" if not why else "Arena-Hard questions, custom"
    current = tool_score("current tool", current_score(labels, seed=seed))
    original = tool_score("original v0.1 tool", original_scores(beside or {model: labels}, seed=seed)[model])
    head = original if arena.protocol == "v0.1" else current
    if differ:
        headline = Score(name, None, note=f"no one score, the baselines differ: {listed(against)}")
    elif rate > missing_limit:
        note = f"withheld: {rate:.1%} of the questions missing or unread, limit {missing_limit:.1%}"
        headline = Score(name, None, note=note)
    else:
        headline = Score(name, head.value, head.interval, head.n, head.clusters, f"{head.name}; {head.note}")
    scores = [headline]
    if not differ:
        scores += [original, current, *own_scores(labels, list(strict.values()), seed)]
        scores += styled_scores(read, answers, baseline_answers, seed)
    if (arena.protocol == "current" and len(against) > 1) or differ:
        scores += scores_by_category(arena, read.rows, against, seed)
    if again and not differ:
        scores.append(judged_again(read, again))
    questions = [_question(question.id, question.category, read, strict) for question in arena.questions]
    return Results(
        name=name,
        official=not why,
        why_not_official=why,
        model=model,
        judge={key: value for key, value in judge.items() if key != "failed"},
        protocol=f"Arena-Hard {arena.protocol}, two games a question against "
        + (listed(against) if differ else baseline),
        settings=dict(settings) | {"baseline": baseline, "seed": seed, "missing_limit": missing_limit},
        hashes=dict(arena.hashes)
        | ({} if answers is None else {"answers": answers.hash})
        | ({} if baseline_answers is None else {"baseline": baseline_answers.hash}),
        scores=scores,
        per_category=strict_by_category(arena, read, seed),
        missing=_missing(read, answers, baseline_answers, rate)
        | {"calls_failed": dict(judge.get("failed", {}))},
        questions=questions,
        notes=[
            question_advice([q["score"] for q in questions if q["score"] is not None], ADVISED_DIFFERENCE)
        ],
    )


def _departures(
    arena: Arena,
    read: Read,
    judge: Mapping[str, Any],
    against: Mapping[str, set[str]],
    baseline_answers: ArenaAnswers | None,
) -> list[str]:
    why = served_otherwise(judge, [JUDGE_V01])
    if judge["asked"] != JUDGE_V01:
        why.append(f"judged by {judge['asked']}, not by {JUDGE_V01}")
    # a file that does not say was judged as its configuration has it
    if (judge.get("settings") or arena.settings.as_dict()) != JUDGE_SETTINGS_V01.as_dict():
        why.append("judge settings other than temperature 0 and 4096 tokens")
    for category, names in against.items():
        official = OFFICIAL_BASELINES.get(category, BASELINE_V01)
        if others := sorted(names - {official}):
            of = f"{category} " if len(against) > 1 else ""
            why.append(f"{of}against {', '.join(others)}, not {official}")
    if (
        baseline_answers is not None
        and baseline_answers.model == BASELINE_V01
        and baseline_answers.hash != OFFICIAL_BASELINE
    ):
        why.append("answers of the baseline that are not the official ones (their content differs)")
    if read.other_prompt:
        why.append(f"{len(read.other_prompt)} games of another prompt or other answers")
    if read.other_score:
        why.append(f"{len(read.other_score)} stored labels that are not what the official parser reads")
    return why


def _missing(
    read: Read,
    answers: ArenaAnswers | None,
    baseline: ArenaAnswers | None,
    rate: float,
) -> dict[str, Any]:
    reasons = {
        f"{name}, game {number}": strict_label(game.text).reason
        for name, one in read.last.items()
        for number, game in enumerate(one.games, start=1)
        if game is not None and strict_label(game.text).value is None
    }
    return {
        "rate": rate,
        "questions_missing": list(read.missing),
        "questions_twice": list(read.twice),
        "questions_extra": list(read.extra),
        "unread_by_the_official_parser": list(read.unread),
        "unread_by_the_strict_parser": reasons,
        "stored_label_differs": list(read.other_score),
        "other_prompt_or_answer": list(read.other_prompt),
        "answers": None if answers is None else answers.oddities.as_record(),
        "baseline": None if baseline is None else baseline.oddities.as_record(),
    }


def _question(
    name: str, category: str, read: Read, strict: Mapping[str, tuple[str | None, str | None]]
) -> dict[str, Any]:
    one = read.last.get(name)
    points = None if one is None else plain_outcomes(one.labels)
    clear = plain_outcomes(strict[name]) if name in strict else None
    first, second = (None, None) if one is None else one.labels
    flags = []
    if one is not None:
        for number, game in enumerate(one.games, start=1):
            if game is not None and strict[name][number - 1] is None:
                flags.append(f"game {number}: {strict_label(game.text).reason}")
    return {
        "id": name,
        "category": category,
        "score": None if points is None else sum(points) / len(points),
        "strict": None if clear is None else sum(clear) / len(clear),
        "game 1 (baseline is A)": first,
        "game 2 (model is A)": second,
        "flags": flags,
    }


def arena_details(
    arena: Arena, answers: ArenaAnswers | None, baseline: ArenaAnswers | None, read: Read
) -> list[dict[str, Any]]:
    """The texts behind each question's score, for the page."""
    details = []
    for question in arena.questions:
        blocks = [{"title": "Request", "text": question.prompt}]
        for title, side in (("Answer", answers), ("Baseline's answer", baseline)):
            if side is not None and question.id in side.texts:
                blocks.append({"title": title, "text": side.texts[question.id]})
        one = read.last.get(question.id)
        for number, game in enumerate(one.games if one else (), start=1):
            if game is not None:
                blocks.append({"title": f"Judge, game {number}: {game.label}", "text": game.text})
        details.append({"id": question.id, "blocks": blocks})
    return details
