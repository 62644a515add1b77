"""Scores of Arena-Hard's games beside the tools' own: questions drawn whole, strict, at equal style, judged again."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.evaluation.judged.arena_hard import Arena, ArenaAnswers
from holdfast.evaluation.judged.arena_judging import Judged
from holdfast.evaluation.judged.arena_reading import Read
from holdfast.evaluation.judged.arena_scores import Games, clustered, model_points, plain_outcomes
from holdfast.evaluation.judged.style_control import controlled_win_rate, style_features, style_of
from holdfast.evaluation.judged.verdict_parsers import strict_label
from holdfast.evaluation.results import Score
from holdfast.evaluation.statistics import Interval, rejudging_spread, win_rate

STYLE_ROWS = 20  # fewer cannot carry five coefficients


def strict_labels(one: Judged) -> tuple[str | None, str | None]:
    """Of the two games, by the strict parser."""
    first, second = (None if game is None else strict_label(game.text).value for game in one.games)
    return first, second


def own_scores(labels: Games, strict: Games, seed: int) -> list[Score]:
    """Percent: clustered, strict, and the plain win rate, a question's rows drawn together in all three."""
    found = []
    for name, games, note in (
        ("clustered by question", labels, "percent; the official parser's labels, weights as the tools'"),
        ("strict", strict, "percent; strict parser, weights as the tools'"),
    ):
        estimate = clustered(games, seed=seed)
        found.append(
            Score(name, None, note="no question with two clear labels")
            if estimate is None
            else _percent(Score.of(name, estimate, note))
        )
    outcomes = [
        (question, point) for question, games in enumerate(strict) for point in plain_outcomes(games) or []
    ]
    if outcomes:
        estimate = win_rate(
            [point for _, point in outcomes], [question for question, _ in outcomes], seed=seed
        )
        note = "percent; strict parser, each game once, a tie for half"
        found.append(_percent(Score.of("win rate", estimate, note)))
    return found


def styled_scores(
    read: Read, answers: ArenaAnswers | None, baseline: ArenaAnswers | None, seed: int
) -> list[Score]:
    """At equal style; nothing where the answers are not at hand, or too few."""
    if answers is None or baseline is None:
        return []
    # Tokens as the answer files count them; without, a fourth of the characters on both sides alike.
    counted = all(name in answers.lengths and name in baseline.lengths for name in read.last)

    def counts(side: ArenaAnswers, name: str) -> list[int]:
        length = side.lengths[name] if counted else len(side.texts[name]) // 4
        return [length, *style_of(side.texts[name]).totals()]

    model_counts, baseline_counts, points = [], [], []
    for name, one in read.last.items():
        if name in answers.texts and name in baseline.texts:
            for point in model_points(one.labels) or []:
                model_counts.append(counts(answers, name))
                baseline_counts.append(counts(baseline, name))
                points.append(point)
    if len(points) < STYLE_ROWS:
        return []
    found = controlled_win_rate(points, style_features(model_counts, baseline_counts), seed=seed)
    length, headers, lists, bold = found.coefficients
    note = (
        f"percent; coefficients: length {length:.2f}, headers {headers:.2f}, lists {lists:.2f}, bold {bold:.2f}"
        f"{'' if counted else '; length in characters, tokens are not counted in the files'}"
    )
    interval = Interval(100 * found.low, 100 * found.high, 0.9)
    return [Score("at equal style", 100 * found.value, interval, len(points), note=note)]


def judged_again(read: Read, again: Sequence[Sequence[Judged]]) -> Score:
    """The median over judgings of the same, and how far they lie apart."""
    names = list(read.last)
    judgings = []
    for judging in (read.rows, *again):
        by_name = {one.question: one for one in judging}
        row: list[float | None] = []
        for name in names:
            points = plain_outcomes(strict_labels(by_name[name])) if name in by_name else None
            row.append(None if points is None else 50 * sum(points))
        judgings.append(row)
    if not all(any(value is not None for value in row) for row in judgings):
        return Score("judged again, median", None, note="a judging has no clear label at all")
    spread = rejudging_spread(judgings)
    note = (
        f"percent; win rate, strict; {spread.lowest:.2f} to {spread.highest:.2f} over {len(judgings)} judgings, "
        f"{spread.changed:.1%} of the questions changed"
    )
    return Score("judged again, median", spread.median, n=len(judgings), note=note)


def strict_by_category(arena: Arena, read: Read, seed: int) -> list[Score]:
    """The strict score of each category, a question's rows drawn together."""
    by_category: dict[str, list[tuple[str | None, str | None]]] = {}
    for question in arena.questions:
        if question.id in read.last:
            by_category.setdefault(question.category, []).append(strict_labels(read.last[question.id]))
    found = []
    for category, games in by_category.items():
        estimate = clustered(games, seed=seed)
        if estimate is None:
            found.append(Score(category, None, note="no question with two clear labels"))
        else:
            found.append(_percent(Score.of(category, estimate, "percent; strict")))
    return found


def _percent(score: Score) -> Score:
    assert score.value is not None
    interval = score.interval
    if interval is not None:
        interval = Interval(100 * interval.low, 100 * interval.high, interval.level)
    return Score(score.name, 100 * score.value, interval, score.n, score.clusters, score.note)
