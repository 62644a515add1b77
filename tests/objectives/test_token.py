"""Token objectives by hand, and properties of the families."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.objectives import Dft, FAlpha, Focal, HuberP, LogOneMinusP, Nll, Probability

logp = st.floats(-50.0, -1e-6)


def at(objective, p: float) -> float:
    return objective(torch.tensor(math.log(p), dtype=torch.float64)).item()


def weight(objective, p: float) -> float:
    return objective.gradient_weight(torch.tensor(p, dtype=torch.float64)).item()


@pytest.mark.parametrize(
    ("objective", "value", "pull"),
    [  # at p = ¼
        (Nll(), math.log(4), 3 / 4),
        (Probability(), 3 / 4, 3 / 16),
        (FAlpha(alpha=0.5), (1 - 1 / 2) / 0.5, 1 / 2 * 3 / 4),
        (FAlpha(alpha=2), (1 - 1 / 16) / 2, 1 / 16 * 3 / 4),
        (LogOneMinusP(), math.log(3 / 4), 1 / 4),
        (Focal(gamma=2), 9 / 16 * math.log(4), 9 / 16 * (3 / 4 + 2 / 4 * math.log(4))),
        (HuberP(delta=0.5), 0.5 * (3 / 4 - 1 / 4), 0.5 * 3 / 16),  # error ¾ > δ: linear
        (HuberP(delta=0.8), 9 / 32, 9 / 64),  # error ¾ ≤ δ: squared, p (1 − p)²
        (Dft(), math.log(4) / 4, 3 / 16),
    ],
)
def test_values_and_weights_by_hand(objective, value: float, pull: float) -> None:
    assert at(objective, 0.25) == pytest.approx(value, rel=1e-12)
    assert weight(objective, 0.25) == pytest.approx(pull, rel=1e-12)


@given(l=logp, alpha=st.floats(0.0, 1e-3))
def test_f_alpha_tends_to_nll(l: float, alpha: float) -> None:  # noqa: E741
    """f_α(l) = −l − α l²/2 − …: below NLL, by less than α l²/2."""
    x = torch.tensor(l, dtype=torch.float64)
    shortfall = (Nll()(x) - FAlpha(alpha=alpha)(x)).item()
    rounding = 1e-14 * abs(l)
    assert -rounding <= shortfall <= alpha * l * l / 2 + rounding


@given(l=logp, alpha=st.sampled_from([1e-19, 1e-20, 1e-21, 1e-300, 5e-324, 0.0]))
def test_f_alpha_is_nll_where_alpha_is_too_small_to_tell(l: float, alpha: float) -> None:  # noqa: E741
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        x = torch.tensor(l, dtype=dtype)
        assert FAlpha(alpha=alpha)(x).item() == pytest.approx(-x.item(), rel=tolerance)


@given(l=logp)
def test_f_alpha_at_one_is_one_minus_p(l: float) -> None:  # noqa: E741
    x = torch.tensor(l, dtype=torch.float64)
    assert FAlpha(alpha=1)(x).equal(Probability()(x))


@given(alpha=st.floats(0.01, 20.0))
def test_f_alpha_pulls_hardest_at_alpha_over_alpha_plus_one(alpha: float) -> None:
    p = torch.linspace(0, 1, 20001, dtype=torch.float64)
    peak = p[FAlpha(alpha=alpha).gradient_weight(p).argmax()].item()
    assert peak == pytest.approx(alpha / (alpha + 1), abs=1e-4)
    assert (peak >= 0.5 - 1e-4) if alpha >= 1 else (peak <= 0.5 + 1e-4)  # Proposition 3.2


def test_small_probabilities_keep_their_gradient_in_float32() -> None:
    # d(1 − p)/dl = −p. Differentiating expm1 in float32 would round 1e-9 to 0.
    x = torch.tensor(math.log(1e-9), requires_grad=True)
    Probability()(x).backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(-1e-9, rel=1e-5)


def test_dft_has_the_gradient_of_one_minus_p() -> None:
    leaf = torch.linspace(-5, -0.1, 20, dtype=torch.float64, requires_grad=True)
    (dft,) = torch.autograd.grad(Dft()(leaf).sum(), leaf)
    (linear,) = torch.autograd.grad(Probability()(leaf).sum(), leaf)
    torch.testing.assert_close(dft, linear, rtol=1e-12, atol=0)


def test_log_one_minus_p_is_held_at_one_rounding_step() -> None:
    certain = torch.tensor([0.0, 1e-8], requires_grad=True)  # a rounding error above 0 included
    value = LogOneMinusP()(certain)
    value.sum().backward()
    assert value.tolist() == pytest.approx([math.log(torch.finfo(torch.float32).eps)] * 2, rel=1e-6)  # −15.9
    assert certain.grad is not None
    assert certain.grad.tolist() == [0.0, 0.0]


def test_focal_at_gamma_zero_is_nll() -> None:
    logps = torch.tensor([0.0, -1e-9, -0.5, -30.0], dtype=torch.float64, requires_grad=True)
    value = Focal(gamma=0)(logps)
    (slope,) = torch.autograd.grad(value.sum(), logps)
    assert value.equal(-logps)
    assert slope.tolist() == [-1.0] * 4


def test_all_tokens_count_unless_the_objective_selects() -> None:
    assert Nll().kept(torch.tensor([-1.0, -100.0])).tolist() == [True, True]
    assert Nll().normalization == "all"
