"""The stable forms against exact values, where the textbook forms fail."""

from __future__ import annotations

import math

import pytest
import torch

from holdfast.objectives.numerics import (
    at_least_float32,
    below_zero,
    log_one_minus_exp,
    one_minus_exp,
    softplus,
)


def gradient(function, x: float, dtype: torch.dtype = torch.float64) -> float:
    leaf = torch.tensor(x, dtype=dtype, requires_grad=True)
    function(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad.item()


def test_softplus_has_no_linear_shortcut() -> None:
    # log(1 + e^21) = 21 + log1p(e^-21) = 21 + 7.58256e-10; torch's softplus returns 21 there.
    x = torch.tensor(21.0, dtype=torch.float64)
    assert (softplus(x) - 21).item() == pytest.approx(7.58256e-10, rel=1e-4)
    assert (torch.nn.functional.softplus(x) - 21).item() == 0


@pytest.mark.parametrize("x", [-1e4, -745.0, 0.0, 1e4])
def test_softplus_is_finite_with_a_logistic_gradient(x: float) -> None:
    assert math.isfinite(softplus(torch.tensor(x)).item())
    assert gradient(softplus, x) == pytest.approx(1 / (1 + math.exp(-x)) if x > -700 else 0.0)


def test_one_minus_exp_keeps_value_near_zero_and_gradient_far_from_it() -> None:
    tiny = torch.tensor(-1e-12, dtype=torch.float64)
    assert one_minus_exp(tiny).item() == pytest.approx(1e-12, rel=1e-12)
    # d(1 - e^x)/dx = -e^x; differentiating expm1 in float32 would give -1 + 1 = 0.
    assert gradient(one_minus_exp, -20.0, torch.float32) == pytest.approx(-math.exp(-20.0), rel=1e-6)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (-1e-12, math.log(1e-12)),  # 1 − e^x ≈ −x
        (-math.log(2.0), -math.log(2.0)),  # 1 − ½ = ½
        (-40.0, -math.exp(-40.0)),  # log(1 − q) ≈ −q
        (-1e4, 0.0),
        (-math.inf, 0.0),
    ],
)
def test_log_one_minus_exp(x: float, expected: float) -> None:
    value = log_one_minus_exp(torch.tensor(x, dtype=torch.float64)).item()
    assert value == pytest.approx(expected, rel=1e-11, abs=0)


@pytest.mark.parametrize("x", [-1e-300, -1e-12, -0.5, -math.log(2.0), -5.0, -40.0, -1e4, -math.inf])
def test_log_one_minus_exp_has_a_clean_gradient(x: float) -> None:
    # d log(1 − e^x)/dx = −e^x/(1 − e^x) = 1/expm1(x)·e^x
    expected = math.exp(x) / math.expm1(x)
    assert gradient(log_one_minus_exp, x) == pytest.approx(expected, rel=1e-12)


def test_half_precision_is_raised_and_the_rest_kept() -> None:
    for dtype, expected in [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        assert at_least_float32(torch.zeros(1, dtype=dtype)).dtype == expected
    with pytest.raises(ValueError, match=r"floating point, got torch\.int64"):
        at_least_float32(torch.zeros(1, dtype=torch.int64))


def test_below_zero_steps_back_from_one_rounding_step() -> None:
    logps = torch.tensor([0.0, 1e-9, -0.5], dtype=torch.float32)
    assert below_zero(logps).tolist() == [-torch.finfo(torch.float32).eps] * 2 + [-0.5]
