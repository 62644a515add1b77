"""The norm gives its definition's values and gradients, and keeps its input and one number a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from holdfast.ops.rms_norm import rms_norm


def definition(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x / (x.square().mean(-1, keepdim=True) + eps).sqrt())


def problem(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=draw, dtype=torch.float64)
    weight = torch.randn(shape[-1], generator=draw, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def value_and_gradients(form: Any, x: Tensor, weight: Tensor, eps: float = 1e-6) -> list[Tensor]:
    y = form(x, weight, eps)
    upstream = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, (x, weight), upstream)]


def test_by_hand() -> None:
    """3 and 4 have a mean square of 12.5."""
    y = rms_norm(torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([1.0, 10.0]).double(), 0.0)
    torch.testing.assert_close(
        y, torch.tensor([[3.0, 40.0]], dtype=torch.float64) / 12.5**0.5, atol=1e-15, rtol=0
    )


def test_a_row_of_zeros_stays_zero() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    y, d_x, d_weight = value_and_gradients(rms_norm, x, torch.ones(3, requires_grad=True), eps=1e-6)
    assert (y == 0).all()
    assert (d_weight == 0).all()
    # the slope at zero is 1 / sqrt(eps)
    torch.testing.assert_close(d_x, 1e3 * torch.linspace(-1, 2, 6).view(2, 3), rtol=1e-5, atol=0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 4),
    heads=st.integers(1, 3),
    size=st.integers(1, 9),
    eps=st.floats(1e-12, 1.0),
    seed=st.integers(0, 2**31),
)
def test_equals_the_definition(rows: int, heads: int, size: int, eps: float, seed: int) -> None:
    inputs = problem(rows, heads, size, seed=seed)
    found, expected = (value_and_gradients(form, *inputs, eps=eps) for form in (rms_norm, definition))
    for actual, value in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, value, atol=1e-10, rtol=1e-9)


def test_gradients_are_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 0.1), problem(3, 5))


def test_memory_layout_does_not_matter() -> None:
    x, weight = problem(4, 3, 6)
    turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not turned.is_contiguous()
    for found, expected in zip(
        value_and_gradients(rms_norm, turned, weight), value_and_gradients(rms_norm, x, weight), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("wide_weight", [False, True])
def test_half_precision_is_rounded_once(wide_weight: bool) -> None:
    x, weight = problem(16, 64, dtype=torch.bfloat16)
    if wide_weight:
        weight = weight.detach().float().requires_grad_()
    exact = definition(x.double(), weight.double(), 1e-6)
    found = rms_norm(x, weight, 1e-6, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16()) or (found - exact).abs().max() <= exact.abs().max() * 2**-8
    d_x, d_weight = torch.autograd.grad(found.sum(), (x, weight))
    assert (d_x.dtype, d_weight.dtype) == (torch.bfloat16, weight.dtype)
    assert rms_norm(x, weight, 1e-6).dtype == weight.dtype


def test_a_frozen_input_or_weight_gets_no_gradient() -> None:
    x, weight = problem(3, 5)
    (d_x,) = torch.autograd.grad(rms_norm(x, weight.detach(), 1e-6).sum(), x)
    (d_weight,) = torch.autograd.grad(rms_norm(x.detach(), weight, 1e-6).sum(), weight)
    both = torch.autograd.grad(rms_norm(x, weight, 1e-6).sum(), (x, weight))
    assert torch.equal(d_x, both[0])
    assert torch.equal(d_weight, both[1])
    assert not rms_norm(x.detach(), weight.detach(), 1e-6).requires_grad


def test_not_differentiable_again() -> None:
    x, weight = problem(3, 5)
    with pytest.raises(RuntimeError, match="no derivative"):
        torch.autograd.grad(rms_norm(x, weight, 1e-6).sum(), x, create_graph=True)


def test_keeps_its_input_and_one_number_a_row() -> None:
    x, weight = problem(7, 11)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rms_norm(x, weight, 1e-6)
    assert sorted(saved) == [7, 11, 77]
