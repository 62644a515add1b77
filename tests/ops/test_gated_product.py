"""The product inside a gated MLP: autograd's values and gradients, from its two inputs alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from holdfast.ops.gated_product import gated_product

ACTS: list[Callable[[Tensor], Tensor]] = [
    F.silu,
    partial(F.gelu, approximate="tanh"),
    F.relu,
    torch.nn.Identity(),
]


def inputs(rows: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    gate, up = (torch.randn(rows, size, generator=draw, dtype=torch.float64) for _ in range(2))
    return gate.to(dtype).requires_grad_(), up.to(dtype).requires_grad_()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rows=st.integers(0, 4), size=st.integers(1, 7), act=st.sampled_from(ACTS), seed=st.integers(0, 2**31))
def test_equals_autograd(rows: int, size: int, act: Callable[[Tensor], Tensor], seed: int) -> None:
    gate, up = inputs(rows, size, seed)
    upstream = torch.linspace(-1, 2, rows * size, dtype=torch.float64).view(rows, size)
    before = gate.detach().clone(), up.detach().clone()
    found, expected = gated_product(gate, up, act), act(gate) * up
    assert torch.equal(found, expected)
    for actual, value in zip(
        torch.autograd.grad(found, (gate, up), upstream),
        torch.autograd.grad(expected, (gate, up), upstream),
        strict=True,
    ):
        torch.testing.assert_close(actual, value, atol=1e-14, rtol=0)
    assert torch.equal(gate, before[0])
    assert torch.equal(up, before[1])


def test_half_precision_as_autograd() -> None:
    gate, up = inputs(8, 16, dtype=torch.bfloat16)
    found = torch.autograd.grad(gated_product(gate, up, F.silu).sum(), (gate, up))
    expected = torch.autograd.grad((F.silu(gate) * up).sum(), (gate, up))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_keeps_its_inputs_alone() -> None:
    gate, up = inputs(5, 6)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gated_product(gate, up, F.silu)
    assert sorted(kept) == sorted([gate.data_ptr(), up.data_ptr()])


def test_not_differentiable_again() -> None:
    gate, up = inputs(3, 5)
    with pytest.raises(RuntimeError, match="no derivative"):
        torch.autograd.grad(gated_product(gate, up, F.silu).sum(), gate, create_graph=True)
