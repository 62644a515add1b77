"""The threshold: which tokens are kept, and that nothing else trains."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.objectives import FAlpha, Nll, Threshold, get_objective


def log(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_by_hand() -> None:
    objective = Threshold(low=0.2)
    logps = log(0.1, 0.25, 0.5)
    assert objective.kept(logps).tolist() == [False, True, True]
    assert objective(logps).tolist() == pytest.approx([0.0, math.log(4), math.log(2)])
    assert objective.gradient_weight(logps.exp()).tolist() == pytest.approx([0.0, 0.75, 0.5])


def test_the_edges_are_inside() -> None:
    exact = torch.tensor([math.log(0.25), math.log(0.5)], dtype=torch.float64)
    p = exact.exp()
    assert Threshold(low=p[0].item(), high=p[1].item()).kept(exact).tolist() == [True, True]


def test_rounding_above_certainty_is_certainty() -> None:
    assert Threshold(low=0.2).kept(torch.tensor([1e-7])).tolist() == [True]


def test_no_gradient_through_the_selection() -> None:
    logps = log(0.1, 0.5).requires_grad_()
    objective = Threshold(base="p", low=0.2)
    objective(logps).sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([0.0, -0.5])
    assert not objective.kept(logps).requires_grad


def test_dropped_tokens_cannot_poison_the_gradient() -> None:
    logps = torch.tensor([-math.inf, -0.5], requires_grad=True)
    objective = Threshold(base="focal", low=0.2)
    objective(logps).sum().backward()
    assert logps.grad is not None
    assert torch.isfinite(logps.grad).all()
    assert logps.grad[0] == 0


def test_a_base_by_name_by_spec_and_by_instance() -> None:
    by_instance = Threshold(base=FAlpha(alpha=2), low=0.1)
    assert by_instance == Threshold(base={"name": "f_alpha", "alpha": 2}, low=0.1)
    assert by_instance == get_objective("threshold", base={"name": "f_alpha", "alpha": 2}, low=0.1)
    assert Threshold(base="nll").base == Nll()


def test_a_band_inside_a_band() -> None:
    nested = Threshold(base=Threshold(low=0.3), high=0.6)
    assert nested.kept(log(0.2, 0.5, 0.8)).tolist() == [False, True, False]


def test_what_to_divide_by_is_on_the_object() -> None:
    assert Threshold().normalization == "kept"
    assert Threshold(normalize="all").normalization == "all"


@given(low=st.floats(0, 1), high=st.floats(0, 1), l=st.floats(-30, 0))
def test_two_halves_of_a_band_make_the_whole(low: float, high: float, l: float) -> None:  # noqa: E741
    """Keeping p ≤ c, plus keeping p ≥ c, is keeping all (but for p = c, which both keep)."""
    low, high = min(low, high), max(low, high)
    x = torch.tensor(l, dtype=torch.float64)
    p = x.exp().item()
    expected = -l if low <= p <= high else 0.0
    assert Threshold(low=low, high=high)(x).item() == pytest.approx(expected)
    if p != low:
        both = Threshold(high=low)(x) + Threshold(low=low)(x)
        assert both.item() == pytest.approx(-l)
