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


# ---- bounds that are quantiles


def test_quantiles_become_the_probabilities_there() -> None:
    objective = Threshold(base="p", low_quantile=0.1, high=0.9)
    assert objective.needs_percentiles
    measured = objective.with_percentiles(lambda share: share / 2)
    assert measured == Threshold(base="p", low=0.05, high=0.9)
    assert not measured.needs_percentiles
    assert measured.with_percentiles(lambda share: 1 / 0) == measured


def test_quantiles_in_a_base_are_measured_too() -> None:
    objective = Threshold(high=0.9, base=Threshold(low_quantile=0.5))
    assert objective.needs_percentiles
    assert objective.with_percentiles(lambda share: 0.25) == Threshold(high=0.9, base=Threshold(low=0.25))


def test_no_token_is_judged_by_a_quantile_that_was_not_measured() -> None:
    objective = Threshold(high_quantile=0.5)
    for judge in (objective, objective.kept, objective.gradient_weight):
        with pytest.raises(ValueError, match="with_percentiles"):
            judge(log(0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 0.2, "low_quantile": 0.1}, "give low or low_quantile, not both"),
        ({"high": 0.2, "high_quantile": 0.1}, "give high or high_quantile, not both"),
        ({"low_quantile": 0.9, "high_quantile": 0.1}, "low_quantile must be < high_quantile"),
        ({"low_quantile": 0.5, "high_quantile": 0.5}, "low_quantile must be < high_quantile"),
        ({"low_quantile": 1}, "low_quantile must be < 1"),
        ({"high_quantile": 0}, "high_quantile must be > 0"),
        ({"high_quantile": 90}, "high_quantile must be <= 1"),
    ],
)
def test_contradicting_quantiles(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Threshold(**settings)
