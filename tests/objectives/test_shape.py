"""Leaning and peak of token objectives: against closed forms, against definitions, for random settings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.objectives import (
    Dft,
    FAlpha,
    Focal,
    HuberP,
    LogOneMinusP,
    Nll,
    Probability,
    Threshold,
    TokenObjective,
    get_objective,
    list_objectives,
)
from holdfast.objectives.shape import shape_of

FEW = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize(
    ("objective", "leaning", "peak", "weight"),
    [
        (Nll(), "prior-averse", 0.0, 1.0),
        (FAlpha(alpha=0.5), "prior-averse", 1 / 3, (1 / 3) ** 0.5 * 2 / 3),
        (Probability(), "prior-leaning", 0.5, 0.25),
        (Dft(), "prior-leaning", 0.5, 0.25),  # by the gradient it gives, which is that of 1 − p
        (FAlpha(alpha=10), "prior-leaning", 10 / 11, (10 / 11) ** 10 / 11),
        (LogOneMinusP(), "prior-leaning", 1.0, 1.0),
        (Focal(gamma=0), "prior-averse", 0.0, 1.0),
        (HuberP(delta=2), "prior-averse", 1 / 3, 4 / 27),  # p (1 − p)²
        (HuberP(delta=0.1), "prior-averse", 0.5, 0.025),  # 0.1 p (1 − p) up to p = 0.9
    ],
    ids=repr,
)
def test_by_hand(objective: TokenObjective, leaning: str, peak: float, weight: float) -> None:
    found = shape_of(objective)
    assert (found.leaning, found.kept_leaning) == (leaning, leaning)
    assert found.peak == pytest.approx(peak, abs=1e-12)
    assert found.peak_weight == pytest.approx(weight, rel=1e-12)
    assert found.linear == isinstance(objective, Probability | Dft)


def test_focal_peaks_where_its_weight_is_stationary() -> None:
    """W' = 0 for γ = 2: (1 − p)(−5 + 3p) ... written out, −2(1−p)(q − 2p log p) + (1−p)²(−3 − 2 log p) = 0."""
    p = shape_of(Focal(gamma=2)).peak
    q, log_p = 1 - p, math.log(p)
    assert -2 * q * (q - 2 * p * log_p) + q * q * (-3 - 2 * log_p) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("objective", "kept_leaning", "peak", "weight"),
    [
        (Threshold(low=0.2), "prior-averse", 0.2, 0.8),
        (Threshold(base="p", high=0.3), "prior-leaning", 0.3, 0.21),
        (Threshold(base="p", low=0.7), "prior-leaning", 0.7, 0.21),
        (Threshold(base="p", low=0.2, high=0.6), "prior-leaning", 0.5, 0.25),
        (Threshold(base=FAlpha(alpha=2), low=0.3), "prior-leaning", 2 / 3, 4 / 27),
    ],
    ids=repr,
)
def test_a_threshold_jumps_and_so_leans_nowhere(
    objective: Threshold, kept_leaning: str, peak: float, weight: float
) -> None:
    found = shape_of(objective)
    assert (found.leaning, found.kept_leaning) == ("neither", kept_leaning)
    assert found.peak == pytest.approx(peak, abs=1e-12)
    assert found.peak_weight == pytest.approx(weight, rel=1e-12)


def test_a_threshold_that_keeps_all_is_its_base() -> None:
    assert shape_of(Threshold(base="focal")) == shape_of(Focal())


class Bent(Probability):
    """f = p³ − 1.5 p² − p: concave up to ½, convex beyond; still falling."""

    name = "bent"

    def loss(self, logps: torch.Tensor) -> torch.Tensor:
        p = logps.exp()
        return p**3 - 1.5 * p**2 - p

    def weight(self, p: torch.Tensor) -> torch.Tensor:
        return -(3 * p**2 - 3 * p - 1) * p * (1 - p)


def test_what_bends_both_ways_is_neither() -> None:
    found = shape_of(Bent())
    assert (found.leaning, found.kept_leaning, found.linear) == ("neither", "neither", False)


@FEW
@given(alpha=st.floats(1e-6, 1e4))
def test_f_alpha_peaks_at_its_closed_form(alpha: float) -> None:
    found = shape_of(FAlpha(alpha=alpha))
    assert found.peak == pytest.approx(alpha / (alpha + 1), rel=1e-9)
    if abs(alpha - 1) > 1e-4:
        assert found.leaning == ("prior-leaning" if alpha > 1 else "prior-averse")


@FEW
@given(
    st.one_of(
        st.floats(0.01, 8).map(lambda g: Focal(gamma=g)), st.floats(0.01, 2).map(lambda d: HuberP(delta=d))
    )
)
def test_no_point_weighs_more_than_the_peak(objective: TokenObjective) -> None:
    """And Proposition 3.2: the half of [0, 1] that the peak lies in follows from the leaning."""
    found = shape_of(objective)
    everywhere = objective.gradient_weight(torch.linspace(0, 1, 20001, dtype=torch.float64))
    assert everywhere.max().item() <= found.peak_weight * (1 + 1e-12)
    assert found.leaning == "prior-averse"
    assert found.peak <= 0.5 + 1e-12


@pytest.mark.parametrize("name", list_objectives("token"))
def test_second_differences_of_f_agree(name: str) -> None:
    """The leaning against the definition: f's own values, where the gradient is that of the value."""
    objective = get_objective(name)
    assert isinstance(objective, TokenObjective)
    if name == "dft":
        return
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    bend = objective(p.log()).diff().diff()
    if (bend >= -1e-12).all() and not (bend <= 1e-12).all():
        assert shape_of(objective).leaning == "prior-averse"
    else:
        assert (bend <= 1e-12).all()
        assert shape_of(objective).leaning == "prior-leaning"
