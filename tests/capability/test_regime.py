"""Regimes by the boundaries, and by the paper's own table."""

from __future__ import annotations

import pytest

from holdfast.capability.blind_guess import ROWS_NEEDED
from holdfast.capability.intervals import Estimate
from holdfast.capability.regime import STRONG_FROM, WEAK_BELOW, regime_of


@pytest.mark.parametrize(
    ("low", "high", "name"),
    [
        (0.01, 0.07, "weak"),  # the paper's figlet fonts
        (0.50, 0.59, "intermediate"),  # its medicine
        (0.76, 0.81, "strong"),  # its maths
        (-0.9, -0.1, "weak"),  # surer of wrong answers than a guess
        (0.29, 0.31, "between weak and intermediate"),
        (0.59, 0.61, "between intermediate and strong"),
        (WEAK_BELOW, 0.4, "intermediate"),
        (0.2, WEAK_BELOW, "between weak and intermediate"),
        (STRONG_FROM, 0.9, "strong"),
        (0.5, STRONG_FROM, "between intermediate and strong"),
        (0.1, 0.9, "undecided"),
    ],
)
def test_an_interval_is_in_a_regime_or_between_two(low: float, high: float, name: str) -> None:
    assert regime_of(Estimate((low + high) / 2, low, high), 300).name == name


def test_without_an_interval_nothing_is_decided() -> None:
    assert regime_of(Estimate(0.7), 300).name == "undecided"
    assert regime_of(Estimate(None), 300).name == "undecided"


def test_rows_in_which_no_format_can_be_recognised_decide_nothing() -> None:
    assert regime_of(Estimate(0.8, 0.7, 0.9), ROWS_NEEDED).name == "undecided"
    assert regime_of(Estimate(0.8, 0.7, 0.9), ROWS_NEEDED + 1).name == "strong"
