"""The map from capability to α, and the objective between two measurements."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.objectives import (
    Adaptive,
    FAlpha,
    Threshold,
    TokenObjective,
    get_objective,
    list_objectives,
    objective_spec,
)

capabilities = st.floats(0, 1)


@pytest.mark.parametrize(
    ("capability", "alpha"),
    [(0.0, 0.0), (0.1, 0.0), (0.25, 0.15625), (0.4, 0.5), (0.55, 0.84375), (0.7, 1.0), (1.0, 1.0)],
)
def test_alpha_by_hand(capability: float, alpha: float) -> None:
    """t = (c − 0.1)/0.6, α = 3t² − 2t³: t = ¼ gives 3/16 − 2/64."""
    assert Adaptive(weak=0.1, strong=0.7, highest=1).alpha_at(capability) == pytest.approx(alpha, abs=1e-15)
    assert Adaptive(capability=capability, weak=0.1, strong=0.7, highest=1).alpha == pytest.approx(
        alpha, abs=1e-15
    )


def test_the_ends_by_hand() -> None:
    objective = Adaptive(weak=0.1, strong=0.7, lowest=0.2, highest=0.8)
    assert [objective.alpha_at(c) for c in (0.0, 0.4, 1.0)] == pytest.approx([0.2, 0.5, 0.8])


@given(low=capabilities, high=capabilities, highest=st.floats(0.1, 10), lowest=st.floats(0, 0.1))
def test_alpha_never_falls_and_never_jumps(low: float, high: float, highest: float, lowest: float) -> None:
    objective = Adaptive(lowest=lowest, highest=highest)
    low, high = min(low, high), max(low, high)
    steepest = (highest - lowest) * 1.5 / (objective.strong - objective.weak)  # of 3t² − 2t³, at t = ½
    rise = objective.alpha_at(high) - objective.alpha_at(low)
    assert lowest - 1e-12 <= objective.alpha_at(low) <= highest + 1e-12
    assert -1e-12 <= rise <= steepest * (high - low) + 1e-12


@given(capability=capabilities, l=st.floats(-50, 0))
def test_at_a_capability_it_is_f_alpha(capability: float, l: float) -> None:  # noqa: E741
    objective = Adaptive().at(capability)
    assert isinstance(objective, Adaptive)
    logp = torch.tensor(l, dtype=torch.float64)
    expected = FAlpha(alpha=objective.alpha)
    assert objective(logp).item() == expected(logp).item()
    assert objective.gradient_weight(logp.exp()).item() == expected.gradient_weight(logp.exp()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("capability", [0.0, 0.5, 0.5001, 0.6, 0.7, 0.95, 1.0])
def test_a_capability_on_a_device_gives_the_same(capability: float, dtype: torch.dtype) -> None:
    logps = torch.tensor([0.0, -1e-6, -0.3, -5.0, -1e3], dtype=dtype)
    told = Adaptive().at(capability)
    measured = Adaptive().at(torch.tensor(capability, dtype=torch.float64))
    leaves = [logps.clone().requires_grad_() for _ in range(2)]
    values = [objective(leaf) for objective, leaf in zip((told, measured), leaves, strict=True)]
    assert values[0].dtype == values[1].dtype
    torch.testing.assert_close(*values, rtol=1e-6, atol=0)
    slopes = [torch.autograd.grad(v.sum(), leaf)[0] for v, leaf in zip(values, leaves, strict=True)]
    torch.testing.assert_close(*slopes, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)
    p = logps.exp()
    torch.testing.assert_close(told.gradient_weight(p), measured.gradient_weight(p), rtol=1e-6, atol=1e-30)
    assert measured.kept(logps).all()
    assert measured.normalization == told.normalization == "all"
    assert {key: float(value) for key, value in measured.state().items()} == pytest.approx(dict(told.state()))


def test_nothing_is_read_back_from_the_device() -> None:
    objective = Adaptive().at(torch.empty((), device="meta"))
    logps = torch.empty(3, device="meta", requires_grad=True)
    objective(logps).sum().backward()
    assert objective.kept(logps).device.type == "meta"


def test_no_gradient_reaches_the_capability() -> None:
    capability = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    logps = torch.tensor([-1.0], requires_grad=True)
    Adaptive().at(capability)(logps).sum().backward()
    assert capability.grad is None


def test_a_threshold_follows_its_base() -> None:
    banded = Threshold(base=Adaptive(half_life=3, weak=0.1, strong=0.7, highest=1), low=0.2)
    assert banded.half_life == 3
    logps = torch.tensor([0.1, 0.5], dtype=torch.float64).log()
    for capability in (0.4, torch.tensor(0.4, dtype=torch.float64)):
        followed = banded.at(capability)
        assert followed.normalization == "kept"
        assert followed(logps).tolist() == pytest.approx([0.0, (1 - math.sqrt(0.5)) / 0.5])  # α = ½
        assert float(followed.state()["alpha"]) == pytest.approx(0.5)


@pytest.mark.parametrize("name", list_objectives("token"))
def test_every_other_objective_stays_as_it_is(name: str) -> None:
    objective = get_objective(name)
    assert isinstance(objective, TokenObjective)
    if name == "adaptive":
        assert objective.half_life == 30
    else:
        assert objective.half_life is None
        assert objective.at(0.3) is objective
        assert objective.state() == {}


def test_its_spec_is_what_was_asked_for() -> None:
    assert objective_spec(Adaptive(strong=0.6)) == {
        "name": "adaptive",
        "capability": 0.5,
        "weak": 0.5,
        "strong": 0.6,
        "lowest": 0.0,
        "highest": 0.8,
        "half_life": 30.0,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weak": 0.95}, "adaptive: weak must be < strong, got weak=0.95 and strong=0.95"),
        ({"capability": 1.5}, "adaptive: capability must be <= 1, got 1.5"),
        ({"highest": 0}, "adaptive: highest must be > 0"),
        ({"lowest": 2}, "adaptive: lowest must be <= highest, got lowest=2.0 and highest=0.8"),
        ({"half_life": -1}, "adaptive: half_life must be >= 0"),
    ],
)
def test_mistakes_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adaptive(**settings)
