"""Summaries of target tokens, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.capability.summary import TokenSummary, by_index, by_part, groups, summarise
from tests.capability.conftest import by_hand

SCORED = by_hand([[0.5, 1.0, 0.0], [0.6], [0.005, 0.55]])
ALL = np.ones(6, dtype=bool)


def found(counted: np.ndarray) -> TokenSummary:
    summary = summarise(SCORED, counted, seed=0)
    assert summary is not None
    return summary


def test_every_token_counts_once_and_every_row_counts_once() -> None:
    summary = found(ALL)
    assert (summary.tokens, summary.rows) == (6, 3)
    assert summary.mean_probability.value == pytest.approx(2.655 / 6)
    assert summary.row_mean_probability.value == pytest.approx((0.5 + 0.6 + 0.2775) / 3)
    assert summary.share_confident.value == pytest.approx(2 / 6)  # 0.55 itself is not above it
    assert summary.share_ruled_out.value == pytest.approx(2 / 6)


def test_a_log_of_zero_is_not_measured() -> None:
    assert found(ALL).mean_logp.value is None
    without = found(np.array([True, True, False, True, True, True]))
    assert without.mean_logp.value == pytest.approx(np.log([0.5, 1, 0.6, 0.005, 0.55]).mean())


def test_histogram_and_percentiles_are_exact() -> None:
    summary, p = found(ALL), [0.5, 1.0, 0.0, 0.6, 0.005, 0.55]
    assert sum(summary.histogram) == 6
    assert {place: n for place, n in enumerate(summary.histogram) if n} == {0: 2, 50: 1, 55: 1, 60: 1, 99: 1}
    assert len(summary.percentiles) == 101
    np.testing.assert_allclose(summary.percentiles, np.percentile(p, range(101)), rtol=0, atol=1e-15)
    assert summary.row_quantiles == pytest.approx(
        np.quantile([0.5, 0.6, 0.2775], [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
    )


def test_rows_without_a_counted_token_are_no_rows() -> None:
    summary = found(np.array([True, False, False, False, False, True]))
    assert (summary.tokens, summary.rows) == (2, 2)
    assert summary.row_mean_probability.value == pytest.approx((0.5 + 0.55) / 2)
    assert summarise(SCORED, ~ALL, seed=0) is None


def test_places_double() -> None:
    scored = by_hand([[0.1] * 9, [0.3, 0.5]])
    informative = np.zeros(11, dtype=bool)
    informative[[0, 9]] = True
    places = by_index(scored, informative, seed=0)
    assert [(place.name, place.tokens) for place in places] == [
        ("0", 2),
        ("1", 2),
        ("2-3", 2),
        ("4-7", 4),
        ("8-15", 1),
    ]
    assert places[0].mean_probability.value == pytest.approx(0.2)
    assert (places[0].informative_tokens, places[1].informative_tokens) == (2, 0)
    assert places[1].informative_mean_probability.value is None


def test_quarters_leave_out_answers_of_fewer_than_four_tokens() -> None:
    scored = by_hand([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.9, 0.9, 0.9]])
    parts = by_part(scored, np.ones(11, dtype=bool), seed=0)
    assert [part.tokens for part in parts] == [2, 2, 2, 2]
    assert [part.mean_probability.value for part in parts] == pytest.approx([0.15, 0.35, 0.55, 0.75])


def test_groups_add_up_to_the_whole() -> None:
    rows = [np.random.default_rng(n).random(n % 5 + 1).tolist() for n in range(30)]
    scored = by_hand(rows)
    of_row = np.arange(30) % 3
    found = groups(scored, np.ones(len(scored.logps), bool), of_row[scored.row_of], ["a", "b", "c"], seed=0)
    for number, group in enumerate(found):
        own = [p for n, row in enumerate(rows) for p in row if n % 3 == number]
        assert group.tokens == len(own)
        assert group.mean_probability.value == pytest.approx(np.mean(own))
        assert group.mean_probability.low is not None
