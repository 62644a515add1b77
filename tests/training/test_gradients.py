"""The norm that is measured first: torch's own, and the gradients as they were."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from holdfast.training.gradients import clip_gradients, gradient_norm


def model_with(*gradients: list[float] | None) -> nn.Module:
    model = nn.Module()
    for number, values in enumerate(gradients):
        parameter = nn.Parameter(torch.zeros(3 if values is None else len(values)))
        parameter.grad = None if values is None else torch.tensor(values)
        model.register_parameter(f"p{number}", parameter)
    return model


def gradients_of(model: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def test_by_hand() -> None:
    model = model_with([3.0, 0.0], None, [0.0, 4.0])
    assert gradient_norm(model).item() == 5
    clip_gradients(model, 2.5, torch.tensor(5.0))
    assert model.p0.grad.tolist() == pytest.approx([1.5, 0])
    assert model.p1.grad is None
    assert model.p2.grad.tolist() == pytest.approx([0, 2])


def test_no_gradients_at_all() -> None:
    model = model_with(None, None)
    assert gradient_norm(model).item() == 0
    clip_gradients(model, 1.0, torch.tensor(0.0))
    assert gradients_of(model) == [None, None]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_leaves_the_gradients(bad: float) -> None:
    model = model_with([1.0, bad], [2.0])
    before = gradients_of(model)
    assert not math.isfinite(gradient_norm(model).item())
    for now, then in zip(gradients_of(model), before, strict=True):
        assert torch.equal(now.view(torch.int32), then.view(torch.int32))


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 100.0])
def test_together_they_are_torchs_own(max_norm: float) -> None:
    """Bit for bit."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3).to(torch.bfloat16)) for _ in range(2))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.grad = torch.randn(mine.shape, generator=generator).to(mine.dtype)
        other.grad = mine.grad.clone()
    norm = gradient_norm(ours)
    clip_gradients(ours, max_norm, norm)
    assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs.parameters(), max_norm))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)
