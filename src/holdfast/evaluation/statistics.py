"""How sure a score is: seeded bootstraps that draw whole clusters, win rates, Bradley-Terry, sample sizes.

A cluster is what was drawn independently, a question as a rule: two turns, two games or three counted rows of one
question rise and fall together, and an interval that draws them apart is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000
CELLS = 4_000_000  # entries of the table of draws that are held at a time
STEPS = 100  # of Newton's method; it needs fewer than ten

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Bounds, and the share of repetitions in which bounds so made hold the true value."""

    low: float
    high: float
    level: float = LEVEL


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` values from `clusters` clusters; its interval is None where there are fewer than two clusters."""

    value: float
    interval: Interval | None
    n: int
    clusters: int


def bootstrap_mean(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """The mean of (n,) values with a percentile interval, clusters drawn with replacement.

    A draw's mean is the sum over the drawn values by their number, so clusters may differ in size. Without `clusters`
    each value is its own.

    Raises:
        ValueError: no value, a value that is not finite, or another number of clusters than of values.
    """
    sample = _finite(values)
    sums, counts = _by_cluster(sample, clusters)
    value = float(sample.mean())
    if len(sums) < 2:
        return Estimate(value, None, len(sample), len(sums))
    drawn = resampled_means(sums, counts, seed=seed, resamples=resamples)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, Interval(float(low), float(high), level), len(sample), len(sums))


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Mean of `second - first`, both (n,) and measured on the same things, with an interval as `bootstrap_mean`'s.

    Pairing takes the questions' difficulty out of the interval: it is what two runs are compared by.

    Raises:
        ValueError: as `bootstrap_mean`, or the two differ in length.
    """
    one, other = _finite(first), _finite(second)
    if one.shape != other.shape:
        raise ValueError(f"paired values must be as many: {len(one)} and {len(other)}")
    return bootstrap_mean(other - one, clusters, seed=seed, resamples=resamples, level=level)


def resampled_means(sums: Floats, counts: Floats, *, seed: int, resamples: int) -> Floats:
    """(resamples,) means of draws of clusters with these (clusters,) sums and numbers of values."""
    generator = np.random.default_rng(seed)
    drawn, done = np.empty(resamples), 0
    while done < resamples:
        size = min(resamples - done, max(1, CELLS // len(sums)))
        places = generator.integers(0, len(sums), size=(size, len(sums)))
        drawn[done : done + size] = sums[places].sum(axis=1) / counts[places].sum(axis=1)
        done += size
    return drawn


def win_rate(
    outcomes: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """The share of games won, a tie for half: `outcomes` (n,) of 1 won, 0.5 tied, 0 lost; in both orders.

    The two games of a question, one in each order, belong in one cluster.

    Raises:
        ValueError: as `bootstrap_mean`, or an outcome that is none of the three.
    """
    games = _finite(outcomes)
    if not np.isin(games, (0.0, 0.5, 1.0)).all():
        raise ValueError("an outcome is 1 (won), 0.5 (tied) or 0 (lost)")
    return bootstrap_mean(games, clusters, seed=seed, resamples=resamples, level=level)


def bradley_terry(
    first: Sequence[int],
    second: Sequence[int],
    outcomes: ArrayLike,
    *,
    players: int,
    pinned: int = 0,
    scale: float = 400.0,
    base: float = 10.0,
    initial: float = 1000.0,
) -> Floats:
    """Ratings (players,) by maximum likelihood: P(first wins) = 1 / (1 + base^((r_second - r_first) / scale)).

    The unregularised logistic regression of the original Arena-Hard; a tie is half a win of each. Ratings are known
    up to a constant, which puts `pinned` at `initial`.

    Args:
        first, second: (games,) indices of the two players.
        outcomes: (games,) what the first one got: 1, 0.5 or 0.

    Raises:
        ValueError: the likelihood has no maximum: the players fall into two groups of which one never lost a point
            to the other; or the numbers of games differ.
    """
    one, other, points = np.asarray(first), np.asarray(second), _finite(outcomes)
    if not len(one) == len(other) == len(points):
        raise ValueError(f"as many of each are needed: {len(one)}, {len(other)} and {len(points)}")
    wins = np.zeros((players, players))
    np.add.at(wins, (one, other), points)
    np.add.at(wins, (other, one), 1 - points)
    _require_maximum(wins)
    games, free = wins + wins.T, [player for player in range(players) if player != pinned]
    strength = np.zeros(players)  # natural log
    for _ in range(STEPS):
        expected = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))  # (i, j): i beats j
        gradient = (wins - games * expected).sum(axis=1)
        information = -games * expected * expected.T
        np.fill_diagonal(information, 0)
        np.fill_diagonal(information, -information.sum(axis=1))
        step = np.linalg.solve(information[np.ix_(free, free)], gradient[free])
        # Far from the maximum a whole step can overshoot; in bounds it cannot, and near it nothing is cut.
        strength[free] += np.clip(step, -1, 1)
        if np.abs(step).max(initial=0) < 1e-12:
            break
    return initial + scale * strength / math.log(base)


def _require_maximum(wins: Floats) -> None:
    """Every player must be reachable from every other by wins (Ford's condition)."""
    reach = (wins > 0) | np.eye(len(wins), dtype=bool)
    for _ in range(max(1, math.ceil(math.log2(max(2, len(wins)))))):
        reach = (reach.astype(float) @ reach.astype(float)) > 0
    if not reach.all():
        raise ValueError(
            "no finite ratings: some players never lost a point to the others; leave them out, or play more games"
        )


@dataclass(frozen=True)
class Spread:
    """What judging the same answers again changed.

    Attributes:
        scores: the whole score of each judging.
        median: of those.
        lowest, highest: of those.
        sd: of one item's values over judgings, the root of the mean variance; None with one judging.
        changed: the share of items whose value was not the same in all judgings.
    """

    scores: tuple[float, ...]
    median: float
    lowest: float
    highest: float
    sd: float | None
    changed: float


def rejudging_spread(judgings: Sequence[Sequence[float | None]]) -> Spread:
    """Spread over (judgings, items); None is an item that a judging has no value for.

    Raises:
        ValueError: no judging, judgings of different length, or one without any value.
    """
    if len({len(judging) for judging in judgings}) != 1:
        raise ValueError("judgings must be of the same items")
    table = np.array([[np.nan if v is None else v for v in judging] for judging in judgings], dtype=float)
    if np.isnan(table).all(axis=1).any():
        raise ValueError("a judging has no value at all")
    scores = [float(np.nanmean(row)) for row in table]
    whole = table[:, ~np.isnan(table).any(axis=0)]
    several = len(table) > 1 and whole.shape[1] > 0
    return Spread(
        scores=tuple(scores),
        median=float(np.median(scores)),
        lowest=min(scores),
        highest=max(scores),
        sd=float(np.sqrt(whole.var(axis=0, ddof=1).mean())) if several else None,
        changed=float((np.ptp(whole, axis=0) > 0).mean()) if several else 0.0,
    )


def advised_sample_size(sd: float, difference: float, power: float = 0.8, level: float = LEVEL) -> int:
    """Questions to judge so that a true `difference` of means is seen: n = ((z_level + z_power) * sd / difference)^2.

    Args:
        sd: of one question's difference between the two runs (of a question's score, where one run stands alone
            against a fixed number).
        power: how often a test at `level`, two-sided, should then find it.

    Raises:
        ValueError: `difference` is not above 0, or `sd` below 0.
    """
    if not difference > 0 or sd < 0:
        raise ValueError("the difference must be above 0, and the standard deviation not below")
    z = stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power)
    return max(2, math.ceil((z * sd / difference) ** 2))


def question_advice(scores: Sequence[float], difference: float) -> str:
    """In words: how many questions show a `difference` between two runs, from one run's scores by question.

    Two runs of the same questions are paired, and how well they agree is not known from one of them: the advice is for
    runs that do not agree at all, and so an upper bound where they do.
    """
    if len(scores) < 2 or not np.ptp(scores) > 0:
        return f"to see a difference of {difference:g}: no advice, the questions' scores do not differ"
    sd = math.sqrt(2) * float(np.std(scores, ddof=1))
    return (
        f"to see a difference of {difference:g} between two runs four times in five, judge at most "
        f"{advised_sample_size(sd, difference):,} questions; fewer where the runs agree: `holdfast eval compare` says"
    )


def cluster_means(values: ArrayLike, clusters: Sequence[Hashable]) -> Floats:
    """(clusters,) means, in the order in which the clusters first appear."""
    sums, counts = _by_cluster(_finite(values), clusters)
    return sums / counts


def _by_cluster(sample: Floats, clusters: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """(clusters,) sums and numbers of values, in the order in which the clusters first appear."""
    if clusters is None:
        return sample, np.ones(len(sample))
    if len(clusters) != len(sample):
        raise ValueError(f"{len(sample)} values, but {len(clusters)} clusters named")
    index: dict[Hashable, int] = {}
    places = np.array([index.setdefault(name, len(index)) for name in clusters])
    sums, counts = np.bincount(places, weights=sample), np.bincount(places)
    return sums.astype(np.float64), counts.astype(np.float64)


def _finite(values: ArrayLike) -> Floats:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError("a flat list of at least one value is needed")
    if not np.isfinite(sample).all():
        raise ValueError("a value is not finite; what is missing must be left out, and counted")
    return sample
