"""Intervals, ratings and sample sizes: by hand, by what must hold, and against other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from holdfast.evaluation.statistics import (
    advised_sample_size,
    bootstrap_mean,
    bradley_terry,
    cluster_means,
    paired_bootstrap,
    question_advice,
    rejudging_spread,
    win_rate,
)

# --- by hand -------------------------------------------------------------------------------------------


def test_a_mean_of_two_clusters() -> None:
    # Draws of {1, 1} and {3}: means 1, 3 or (1 + 1 + 3) / 3; the quartile draws are the ends.
    found = bootstrap_mean([1, 1, 3], ["a", "a", "b"], level=0.9)
    assert found.value == pytest.approx(5 / 3)
    assert (found.n, found.clusters) == (3, 2)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high, found.interval.level) == (1.0, 3.0, 0.9)


def test_one_cluster_has_no_interval() -> None:
    assert bootstrap_mean([1, 5], ["a", "a"]).interval is None
    assert bootstrap_mean([4]).interval is None


def test_paired_differences_take_the_questions_difficulty_out() -> None:
    before = np.arange(20.0)
    found = paired_bootstrap(before, before + 0.5)
    assert found.value == 0.5
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (0.5, 0.5)


def test_cluster_means_in_order_of_appearance() -> None:
    assert cluster_means([2, 10, 4], ["b", "a", "b"]).tolist() == [3, 10]


def test_a_tie_is_half_a_win() -> None:
    assert win_rate([1, 0.5, 0, 1]).value == 0.625
    with pytest.raises(ValueError, match="1 .won., 0.5 .tied. or 0"):
        win_rate([0.7])


def test_two_players_ratings_are_log_odds() -> None:
    # Three of four points are odds of 3: 400 * log10(3) = 190.85 apart.
    ratings = bradley_terry([0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0], players=2, pinned=1)
    assert ratings == pytest.approx([1000 + 400 * math.log10(3), 1000])
    tied = bradley_terry([0, 1], [1, 0], [0.5, 0.5], players=2)
    assert tied == pytest.approx([1000, 1000])


def test_ratings_without_a_maximum_are_refused() -> None:
    with pytest.raises(ValueError, match="never lost a point"):
        bradley_terry([0, 0], [1, 1], [1, 1], players=2)
    with pytest.raises(ValueError, match="no finite ratings"):
        bradley_terry([0, 1], [1, 0], [1, 1], players=3)  # the third never played


def test_advice_on_questions() -> None:
    # (1.959964 + 0.841621)^2 = 7.8489 for 95 % and 80 %.
    assert advised_sample_size(1.0, 1.0) == 8
    assert advised_sample_size(1.5, 0.2) == math.ceil(7.8489 * (1.5 / 0.2) ** 2)
    assert advised_sample_size(0.0, 0.2) == 2
    with pytest.raises(ValueError, match="above 0"):
        advised_sample_size(1.0, 0.0)


def test_spread_over_judgings() -> None:
    found = rejudging_spread([[7, 8, None], [9, 8, 5], [7, 8, 6]])
    assert found.scores == (7.5, pytest.approx(22 / 3), 7)
    assert (found.median, found.lowest, found.highest) == (pytest.approx(22 / 3), 7, 7.5)
    # whole items: {7, 9, 7}, variance 4/3, and {8, 8, 8}, variance 0
    assert found.sd == pytest.approx(math.sqrt(2 / 3))
    assert found.changed == 0.5
    once = rejudging_spread([[1.0, 2.0]])
    assert (once.median, once.sd, once.changed) == (1.5, None, 0.0)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0]]])
def test_what_is_no_list_of_numbers_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="flat list|not finite"):
        bootstrap_mean(values)


def test_clusters_must_be_named_for_every_value() -> None:
    with pytest.raises(ValueError, match="2 values, but 1 clusters"):
        bootstrap_mean([1, 2], ["a"])
    with pytest.raises(ValueError, match="as many: 1 and 2"):
        paired_bootstrap([1], [1, 2])


# --- what must hold ------------------------------------------------------------------------------------

NUMBERS = st.lists(st.floats(-100, 100), min_size=2, max_size=20)


@settings(max_examples=25, deadline=None)
@given(NUMBERS, st.integers(0, 3))
def test_an_interval_is_seeded_and_moves_with_the_values(values: list[float], seed: int) -> None:
    found = bootstrap_mean(values, seed=seed, resamples=200)
    assert found == bootstrap_mean(values, seed=seed, resamples=200)
    assert found.interval is not None
    assert min(values) - 1e-9 <= found.interval.low <= found.interval.high <= max(values) + 1e-9
    moved = bootstrap_mean(np.array(values) + 7, seed=seed, resamples=200)
    assert moved.interval is not None
    assert moved.interval.low == pytest.approx(found.interval.low + 7)


def test_rows_that_rise_together_widen_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    alone = bootstrap_mean(np.repeat(values, 4))
    together = bootstrap_mean(np.repeat(values, 4), [place for place in range(50) for _ in range(4)])
    assert alone.interval is not None
    assert together.interval is not None
    ratio = (together.interval.high - together.interval.low) / (alone.interval.high - alone.interval.low)
    assert ratio == pytest.approx(2, rel=0.1)  # four copies count as one


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        interval = bootstrap_mean(generator.normal(size=60), seed=trial, resamples=400).interval
        assert interval is not None
        hits += interval.low <= 0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.98


# --- against other libraries ---------------------------------------------------------------------------


def test_as_scipys_bootstrap() -> None:
    values = np.random.default_rng(2).gamma(2.0, size=40)
    ours = bootstrap_mean(values, resamples=20_000).interval
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_as_an_unregularised_logistic_regression(seed: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(seed)
    players, games = 5, 400
    first = generator.integers(0, players, games)
    second = (first + generator.integers(1, players, games)) % players
    strength = generator.normal(size=players)
    outcomes = (generator.random(games) < 1 / (1 + np.exp(strength[second] - strength[first]))).astype(float)
    outcomes[:40] = 0.5
    ours = bradley_terry(first, second, outcomes, players=players, pinned=2)
    # As the original writes it: every game twice, a tie as a win of each.
    design = np.zeros((2 * games, players))
    rows = np.arange(2 * games)
    design[rows, np.tile(first, 2)] = math.log(10)
    design[rows, np.tile(second, 2)] = -math.log(10)
    wins = np.concatenate([outcomes > 0, outcomes == 1]).astype(float)
    fit = linear_model.LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-10, max_iter=10_000)
    theirs = 400 * fit.fit(design, wins).coef_[0]
    assert ours == pytest.approx(theirs - theirs[2] + 1000, abs=0.05)


def test_advice_from_one_run_takes_two_unrelated_ones() -> None:
    scores = [4.0, 6.0] * 20
    expected = advised_sample_size(math.sqrt(2) * float(np.std(scores, ddof=1)), 0.2)
    assert f"judge at most {expected:,} questions" in question_advice(scores, 0.2)
    assert "no advice" in question_advice([5.0, 5.0], 0.2)
