"""Arena-Hard's two scores from the labels of two games a question, as the original tools compute and print them.

Game 1 shows the baseline as A, game 2 the model. A clear win (`>>`) counts as three rows. Both tools draw single rows
again, as if the rows of one question were independent; `clustered` draws questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.evaluation.judged.verdict_parsers import LABEL_POINTS, LABELS
from holdfast.evaluation.statistics import Estimate, bootstrap_mean

Games = Sequence[tuple[str | None, str | None]]  # labels of games 1 and 2, a question each

ROUNDS = 100  # of both tools' bootstraps
SEED = 42
SCALE, BASE, INITIAL = 400.0, 10.0, 1000.0
# A rating this far off is odds of 1e30: a model that only won or only lost has no finite one.
FARTHEST = 30 * SCALE


@dataclass(frozen=True)
class ArenaScore:
    """A win rate against the baseline in percent, with its bounds, and how the original prints them.

    Attributes:
        rows: that were counted.
        level: nominal, of the interval.
    """

    value: float
    low: float
    high: float
    rows: int
    level: float
    printed: str


def model_points(games: tuple[str | None, str | None]) -> list[float] | None:
    """The model's points row by row, game 2's first; None where a game has no label that counts.

    The current tool drops such a question where a label is null, and ends with an error where it is unknown (`[[AB]]`);
    both are dropped here.
    """
    first, second = (LABEL_POINTS.get(label or "") for label in games)
    if first is None or second is None:
        return None
    return second + [1 - points for points in first]


def current_score(games: Games, *, seed: int = SEED, rounds: int = ROUNDS) -> ArenaScore | None:
    """The mean of 100 bootstrap means, 5th and 95th percentile; None where no question has two labels.

    The tool itself does not seed its draws: its digits change from run to run by about a tenth of the interval.
    """
    rows = np.array([points for pair in games for points in model_points(pair) or []])
    if not len(rows):
        return None
    generator = np.random.default_rng(seed)
    means = rows[generator.integers(0, len(rows), size=(rounds, len(rows)))].mean(axis=1)
    value, (low, high) = float(means.mean()), np.quantile(means, [0.05, 0.95])
    printed = (
        f"{round(value * 100, 1)} (-{round((value - low) * 100, 1)} / +{round((high - value) * 100, 1)})"
    )
    return ArenaScore(100 * value, 100 * float(low), 100 * float(high), len(rows), 0.9, printed)


def original_scores(
    models: Mapping[str, Games], *, seed: int = SEED, rounds: int = ROUNDS
) -> dict[str, ArenaScore | None]:
    """The original v0.1: Bradley-Terry ratings of all models against one baseline, as win rates.

    Every game has the baseline on one side, so each rating's maximum likelihood is the log-odds of the share of
    points: what the logistic regression there converges to. Percentiles 2.5 and 97.5 are of the ratings. All models
    are drawn in one table, as there: the bounds of one depend on which others there are, and in which order.
    """
    names = list(models)
    owner, points = [], []
    for index, games in enumerate(models.values()):
        rows = [row for pair in games for row in _original_rows(pair)]
        owner += [index] * len(rows)
        points += rows
    if not owner:
        return dict.fromkeys(names)
    who, won = np.array(owner), np.array(points)
    whole = _ratings(who, won, len(names))
    # The legacy generator: its draws are those of the tool, which seeds the global one.
    generator = np.random.RandomState(seed)
    drawn = np.empty((rounds, len(names)))
    for index in range(rounds):
        places = generator.choice(len(who), size=len(who), replace=True)
        drawn[index] = _ratings(who[places], won[places], len(names))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return {
        name: None
        if math.isnan(whole[i])
        else _as_win_rates(whole[i], low[i], high[i], int((who == i).sum()))
        for i, name in enumerate(names)
    }


def _original_rows(games: tuple[str | None, str | None]) -> list[float]:
    """The model's points, game 1's first; a game without one of the five labels is left out by itself."""
    first, second = (LABEL_POINTS[label] if label in LABELS else [] for label in games)
    return [1 - points for points in first] + second


def _ratings(who: NDArray[np.int64], won: NDArray[np.float64], models: int) -> NDArray[np.float64]:
    """(models,) ratings with the baseline at INITIAL; NaN for a model that has no row."""
    games = np.bincount(who, minlength=models)
    wins = np.bincount(who, weights=won, minlength=models)
    with np.errstate(divide="ignore", invalid="ignore"):
        rating = SCALE * (np.log(wins) - np.log(games - wins)) / math.log(BASE)
    return INITIAL + np.clip(rating, -FARTHEST, FARTHEST)


def _as_win_rates(rating: float, low: float, high: float, rows: int) -> ArenaScore:
    rate, lower, upper = (
        round(100 / (1 + BASE ** ((INITIAL - value) / SCALE)), 2) for value in (rating, low, high)
    )
    printed = f"score: {round(rate, 1)} | 95% CI: ({round(lower - rate, 1)}, {round(upper - rate, 1)})"
    return ArenaScore(rate, lower, upper, rows, 0.95, printed)


def clustered(games: Games, *, seed: int = SEED) -> Estimate | None:
    """The share of rows won, weights as above, with a 95 % interval that draws questions; None without any."""
    rows = [(question, row) for question, pair in enumerate(games) for row in model_points(pair) or []]
    if not rows:
        return None
    return bootstrap_mean([row for _, row in rows], [question for question, _ in rows], seed=seed)


def plain_outcomes(games: tuple[str | None, str | None]) -> list[float] | None:
    """The model's result of each game, 1, 0.5 or 0, a clear win like any; None as in `model_points`."""
    first, second = (LABEL_POINTS.get(label or "") for label in games)
    return None if first is None or second is None else [1 - first[0], second[0]]
