"""ORPO by hand, and where probabilities reach one."""

from __future__ import annotations

import math

import pytest
import torch

from holdfast.objectives import Orpo
from holdfast.objectives.orpo import log_odds


def test_by_hand(make_pairs) -> None:
    # P_w = ½: odds 1, log odds 0. P_l = ¼: odds ⅓, log odds −log 3. σ(log 3) = ¾.
    terms = Orpo(weight=0.5)(make_pairs([[math.log(0.5)] * 2], [[math.log(0.25)]]))
    assert terms.parts["nll"].item() == pytest.approx(math.log(2))
    assert terms.parts["odds_ratio"].item() == pytest.approx(-0.5 * math.log(0.75))
    assert terms.rewards_chosen.item() == pytest.approx(0.0, abs=1e-15)
    assert terms.rewards_rejected.item() == pytest.approx(-math.log(3))
    assert terms.satisfied.item()


def test_log_odds_near_one() -> None:
    # P = e^x with x → 0⁻: log odds ≈ −log(−x)
    near = torch.tensor([-1e-10], dtype=torch.float64)
    assert log_odds(near).item() == pytest.approx(10 * math.log(10), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certainty_stays_finite(make_pairs, dtype: torch.dtype) -> None:
    pairs = make_pairs([[0.0], [0.0], [-1e-9]], [[0.0], [-1e4], [-1e-12]], dtype=dtype)
    terms = Orpo()(pairs)
    terms.loss.sum().backward()
    for values in (terms.loss, terms.rewards_chosen, pairs.chosen.grad, pairs.rejected.grad):
        assert torch.isfinite(values).all()
