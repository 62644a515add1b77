"""Intervals clustered by row: by hand, against the plain bootstrap, and what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.capability import intervals
from holdfast.capability.intervals import RESAMPLES, Estimate, prompt_numbers, row_bootstrap
from holdfast.evaluation.statistics import bootstrap_mean


def test_the_value_is_the_ratio_of_the_sums() -> None:
    (found,) = row_bootstrap([[1.0, 3.0]], [[1.0, 7.0]], seed=0)
    assert found.value == 0.5
    # two rows: the draws are the first twice (1), the second twice (3/7), or both
    assert (found.low, found.high) == (pytest.approx(3 / 7), 1.0)


def test_equal_rows_have_no_width() -> None:
    assert row_bootstrap([[2.0] * 5], [[4.0] * 5], seed=1) == [Estimate(0.5, 0.5, 0.5)]


def test_it_is_the_plain_bootstrap_over_rows() -> None:
    generator = np.random.default_rng(3)
    top, bottom = generator.random((2, 40)), generator.integers(1, 9, (2, 40))
    draws = np.random.default_rng(7).integers(0, 40, size=(1000, 40))
    for own, (above, below) in zip(
        row_bootstrap(top, bottom, seed=7), zip(top, bottom, strict=True), strict=True
    ):
        ratios = [above[draw].sum() / below[draw].sum() for draw in draws]
        assert (own.low, own.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=1e-12)


def test_it_does_not_depend_on_how_many_draws_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    top = np.random.default_rng(0).random((1, 50))
    whole = row_bootstrap(top, np.ones_like(top), seed=0)
    monkeypatch.setattr(intervals, "CELLS", 120)
    np.testing.assert_allclose(
        [whole[0].low, whole[0].high],
        [getattr(row_bootstrap(top, np.ones_like(top), seed=0)[0], bound) for bound in ("low", "high")],
        rtol=0,
        atol=1e-15,
    )


def test_tokens_of_one_row_are_no_independent_draws() -> None:
    """A hundred equal tokens a row tell no more than one."""
    means = np.random.default_rng(0).random(30)
    one, hundred = row_bootstrap([means, 100 * means], [np.ones(30), np.full(30, 100.0)], seed=0)
    assert (one.low, one.high) == pytest.approx((hundred.low, hundred.high), abs=1e-12)


def test_prompts_are_numbered_as_they_appear() -> None:
    assert prompt_numbers(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_rows_of_one_prompt_are_drawn_together() -> None:
    """By hand, of two prompts: 1 + 3 of 2 + 2, and 0 of 4. Draws are the first twice, the second twice, or both."""
    top, bottom = [[1.0, 0.0, 3.0]], [[2.0, 4.0, 2.0]]
    (found,) = row_bootstrap(top, bottom, seed=0, prompt_of=prompt_numbers("aba"))
    assert found == Estimate(0.5, 0.0, 1.0)
    assert row_bootstrap(top, bottom, seed=0, prompt_of=prompt_numbers("aaa")) == [Estimate(0.5)]


def test_copies_of_rows_tell_nothing_new() -> None:
    generator = np.random.default_rng(5)
    top, bottom = generator.random((2, 30)), generator.integers(1, 9, (2, 30)).astype(float)
    names = list(range(30))
    once = row_bootstrap(top, bottom, seed=1)
    assert once == row_bootstrap(top, bottom, seed=1, prompt_of=prompt_numbers(names))
    often = row_bootstrap(np.tile(top, 4), np.tile(bottom, 4), seed=1, prompt_of=prompt_numbers(names * 4))
    for own, other in zip(once, often, strict=True):
        assert (other.value, other.low, other.high) == pytest.approx(
            (own.value, own.low, own.high), abs=1e-12
        )
    apart = row_bootstrap(np.tile(top, 4), np.tile(bottom, 4), seed=1)
    assert width(apart[0]) < 0.6 * width(once[0])  # what four copies would make of it, drawn apart: a half


def test_intervals_of_a_mean_are_those_of_evaluations() -> None:
    """One bootstrap for both floors, although the lower one may not know the higher: same draws, same bounds."""
    values = np.random.default_rng(2).random(40)
    questions = [number // 3 for number in range(40)]
    (found,) = row_bootstrap(values, np.ones(40), seed=9, prompt_of=prompt_numbers(questions))
    other = bootstrap_mean(values, questions, seed=9, resamples=RESAMPLES)
    assert other.interval is not None
    assert (found.value, found.low, found.high) == pytest.approx(
        (other.value, other.interval.low, other.interval.high), abs=1e-12
    )


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        rows = generator.normal(0.4, 0.2, (60, 1)) + generator.normal(0, 0.1, (60, 8))
        (found,) = row_bootstrap([rows.sum(1)], [np.full(60, 8.0)], seed=trial)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.4 <= found.high
    assert 178 <= hits <= 200


def test_missing_is_not_zero() -> None:
    assert row_bootstrap([[1.0]], [[2.0]], seed=0) == [Estimate(0.5)]  # one row: no interval
    assert row_bootstrap([[0.0, 0.0]], [[0.0, 0.0]], seed=0) == [Estimate(None)]
    assert row_bootstrap([[1.0] + [0.0] * 9], [[2.0] + [0.0] * 9], seed=0) == [Estimate(0.5)]
    # two of twenty rows have a denominator: some draws meet neither
    (found,) = row_bootstrap([[1.0, 0.0] + [0.0] * 18], [[1.0, 1.0] + [0.0] * 18], seed=0)
    assert found == Estimate(0.5)
