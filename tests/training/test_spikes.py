"""Spikes: by hand, then for any series."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.training.config import SFTConfig
from holdfast.training.spikes import WARM_UP, Series, Spike, SpikeDetector

THRESHOLD, WINDOW = SFTConfig.spike_threshold, SFTConfig.spike_window


def series(values: list[float], **settings: float | bool) -> Series:
    made = Series("x", **{"threshold": 2, "window": 5, "of_median": 0.1, "of_range": 0.25} | settings)
    for value in values:
        assert made.observe(value) is None
    return made


def detector() -> SpikeDetector:
    return SpikeDetector(THRESHOLD, WINDOW)


@pytest.mark.parametrize(
    ("values", "settings", "limit"),
    [
        # median 3, absolute deviations 2 1 0 1 2, so MAD 1
        ([1, 2, 3, 4, 5], {}, 3 + 2 * 1.4826),
        # no deviation: a tenth of the median's size
        ([10] * 5, {}, 12),
        ([-10] * 5, {}, -8),
        # most are equal: a quarter of the way to the greatest
        ([1, 1, 1, 1, 2.5], {}, 1 + 2 * 0.25 * 1.5),
        # nothing but the unit
        ([0] * 5, {"unit": 0.25}, 0.5),
        # the window forgets; the whole run does not
        ([8, 1, 1, 1, 1, 1, 1], {}, 1.2),
        ([8, 1, 1, 1, 1, 1, 1], {"whole_run": True}, 1 + 2 * 0.25 * 7),
        # one threshold for all of them
        ([10] * 5, {"threshold": 7}, 17),
    ],
)
def test_limits_by_hand(values: list[float], settings: dict[str, float], limit: float) -> None:
    assert series(values, **settings).observe(limit - 1e-9) is None
    found = series(values, **settings).observe(limit + 1e-9)
    assert found is not None
    assert found.limit == pytest.approx(limit, abs=1e-12)


def test_a_spike_is_described_and_enters_as_its_limit() -> None:
    made = series([10] * 5)
    found = made.observe(1e6)
    assert found == Spike("x", 1e6, 10, 12)
    assert str(found) == "the x is 1e+06, where 10 is usual and 12 would pass"
    assert list(made.values) == [10, 10, 10, 10, 12]
    assert made.greatest == 12
    assert made.observe(12.1) is not None, "the first spike hid the second"


def test_the_first_values_are_not_judged() -> None:
    made = series([1, 1, 1, 1, 1000], unit=0.25)
    assert len(made.values) == WARM_UP == 5


def test_what_says_nothing_is_passed_over() -> None:
    """NaN (a scaler's step), and the norm of no gradient: a batch all of whose tokens are left out."""
    made = detector()
    for _ in range(20):
        assert made.observe(2.0, 0.0) == []
        assert made.observe(2.0, math.nan) == []
        assert made.observe(2.0, math.inf) == []
    assert len(made.series["grad_norm"].values) == 0
    assert made.observe(2.0, 3.0) == []


@pytest.mark.parametrize(
    "usual", [(2.0, 1.0), (0.6931, 0.02), (0.02, 0.5), (25.0, 700.0), (300.0, 5e4)], ids=str
)
def test_a_thousandfold_loss_in_a_real_scale(usual: tuple[float, float]) -> None:
    """Of language models, DPO, overfitted SFT, IPO, SLiC; batches differ by a third."""
    made = detector()
    for step in range(50):
        assert made.observe(*(value * (1 + (step % 7 - 3) / 10) for value in usual)) == []
    assert [spike.name for spike in made.observe(usual[0] * 1000, usual[1] * 1000)] == [
        "loss",
        "gradient norm",
    ]


def test_pairs_told_apart_have_no_spikes() -> None:
    """All but one in two hundred cost next to nothing and have next to no gradient; that one is as at the start."""
    made = detector()
    for _ in range(10):
        assert made.observe(0.6931, 5.0) == []
    for _ in range(200):
        assert made.observe(0.001, 0.01) == []
    assert made.observe(4.0, 20.0) == []
    assert [spike.name for spike in made.observe(40.0, 500.0)] == ["loss", "gradient norm"]


positive = st.floats(0.05, 1e4)


@given(scale=positive, shares=st.lists(st.floats(1, 3), max_size=200))
def test_values_within_a_factor_of_three_are_no_spikes(scale: float, shares: list[float]) -> None:
    made = detector()
    for share in shares:
        assert made.observe(scale * share, scale * share) == []


@given(start=positive, rate=st.floats(1, 2), noise=st.randoms(use_true_random=False))
def test_a_rising_series_is_no_spike(start: float, rate: float, noise: object) -> None:
    """A learning rate too high: every step's loss up to twice the one before."""
    made = detector()
    value = start
    for _ in range(60):
        assert made.observe(value, value) == []
        value *= rate


@given(start=positive, rate=st.floats(0.5, 1), floor=st.floats(0, 1e-3))
def test_a_falling_series_is_no_spike(start: float, rate: float, floor: float) -> None:
    made = detector()
    value = start
    for _ in range(60):
        assert made.observe(value + floor, value + floor) == []
        value *= rate


@given(least=st.floats(-100, 100), above=st.lists(st.floats(0, 4.99), max_size=200))
def test_losses_within_five_nats_are_no_spikes(least: float, above: list[float]) -> None:
    """Such are the losses of pairs nearly all told apart, and of log(1 - p), which are negative."""
    made = detector()
    for value in above:
        assert made.observe(least + value, math.nan) == []


@given(scale=positive, shares=st.lists(st.floats(1, 10), min_size=WARM_UP, max_size=200), data=st.data())
def test_a_thousandfold_value_is_a_spike_at_once(
    scale: float, shares: list[float], data: st.DataObject
) -> None:
    """Whichever of the values before, which lie within a factor of ten, is multiplied."""
    made = detector()
    for share in shares:
        made.observe(scale * share, scale * share)
    value = 1000 * scale * data.draw(st.sampled_from(shares))
    assert [spike.value for spike in made.observe(value, value)] == [value, value]
    assert made.observe(scale, scale) == []


@given(level=st.floats(100, 1e6))
def test_a_lasting_change_is_accepted(level: float) -> None:
    made = detector()
    for _ in range(WINDOW):
        made.observe(1.0, 1.0)
    reported = [bool(made.observe(level, level)) for _ in range(WINDOW)]
    assert 1 <= sum(reported) <= 9
    assert not any(reported[9:])


@settings(max_examples=50)
@given(
    values=st.lists(st.tuples(st.floats(-5, 1e5), st.floats(0, 1e5)), max_size=60),
    stop=st.integers(0, 60),
    window=st.integers(WARM_UP, 40),
)
def test_a_resumed_detector_finds_the_same(values: list[tuple[float, float]], stop: int, window: int) -> None:
    whole, first = SpikeDetector(THRESHOLD, window), SpikeDetector(THRESHOLD, window)
    found = [whole.observe(*value) for value in values]
    before = [first.observe(*value) for value in values[:stop]]
    state = json.loads(json.dumps(first.state_dict(), allow_nan=False))
    second = SpikeDetector(THRESHOLD, window)
    second.load_state_dict(state)
    assert before + [second.observe(*value) for value in values[stop:]] == found
    assert second.state_dict() == whole.state_dict()


def test_a_shorter_window_keeps_the_last_values() -> None:
    made = detector()
    for value in range(20):
        made.observe(float(value), 1.0)
    shorter = SpikeDetector(THRESHOLD, 6)
    shorter.load_state_dict(made.state_dict())
    assert list(shorter.series["loss"].values) == [14, 15, 16, 17, 18, 19]
