"""DPO and its label smoothing, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from holdfast.objectives import Dpo


@pytest.fixture
def pairs(make_pairs):
    # S_w = −3, R_w = −4; S_l = −5, R_l = −3: h/β = (−3 + 4) − (−5 + 3) = 1 + 2 = 3
    return make_pairs([[-1.0, -2.0]], [[-5.0]], [-4.0], [-3.0])


def test_loss_and_rewards(pairs) -> None:
    terms = Dpo(beta=0.5)(pairs)
    assert terms.loss.item() == pytest.approx(math.log1p(math.exp(-1.5)))  # 0.201413
    assert terms.rewards_chosen.item() == pytest.approx(0.5)
    assert terms.rewards_rejected.item() == pytest.approx(-1.0)
    assert terms.satisfied.item()


def test_at_the_reference_the_loss_is_log_two(make_pairs) -> None:
    terms = Dpo()(make_pairs([[-1.0]], [[-2.0]], [-1.0], [-2.0]))
    assert terms.loss.item() == pytest.approx(math.log(2))
    assert not terms.satisfied.item()


def test_conservative_smoothing(pairs) -> None:
    # −0.8 log σ(1.5) − 0.2 log σ(−1.5) = 0.8 · 0.201413 + 0.2 · 1.701413 = 0.501413
    assert Dpo(beta=0.5, label_smoothing=0.2)(pairs).loss.item() == pytest.approx(0.501413, abs=1e-6)


def test_robust_smoothing(pairs) -> None:
    # (0.8 · 0.201413 − 0.2 · 1.701413) / (1 − 0.4) = −0.298587
    loss = Dpo(beta=0.5, label_smoothing=0.2, variant="robust")(pairs).loss.item()
    assert loss == pytest.approx((0.8 * 0.2014133 - 0.2 * 1.7014133) / 0.6, abs=1e-6)


def test_robust_smoothing_is_unbiased(pairs) -> None:
    """Over labels flipped with probability ε, the robust loss has the clean loss as its mean."""
    flipped = pairs._replace(
        chosen=pairs.rejected,
        rejected=pairs.chosen,
        chosen_mask=pairs.rejected_mask,
        rejected_mask=pairs.chosen_mask,
        reference_chosen=pairs.reference_rejected,
        reference_rejected=pairs.reference_chosen,
    )
    robust = Dpo(label_smoothing=0.3, variant="robust")
    mean = 0.7 * robust(pairs).loss + 0.3 * robust(flipped).loss
    assert mean.item() == pytest.approx(Dpo()(pairs).loss.item(), rel=1e-12)


@pytest.mark.parametrize("margin", [-1e5, 1e5])
@pytest.mark.parametrize("variant", ["sigmoid", "robust"])
def test_extreme_margins_stay_finite(make_pairs, margin: float, variant: str) -> None:
    pairs = make_pairs([[0.0]], [[0.0]], [-margin], [0.0])
    terms = Dpo(beta=1.0, label_smoothing=0.1, variant=variant)(pairs)
    terms.loss.sum().backward()
    assert torch.isfinite(terms.loss).all()
    assert torch.isfinite(pairs.chosen.grad).all()


def test_a_rejected_completion_that_is_ruled_out_costs_nothing(make_pairs) -> None:
    pairs = make_pairs([[-1.0]], [[-math.inf]], [-1.0], [-1.0])  # h = ∞, and 0 · −log σ(−∞) must not appear
    assert Dpo()(pairs).loss.item() == 0


def test_conservative_smoothing_is_least_where_the_model_is_as_sure_as_the_labels(make_pairs) -> None:
    # The minimum over h lies at σ(h) = 1 − ε: with ε = 0.2 and β = 1, at h = log 4.
    pairs = make_pairs([[0.0]], [[0.0]], [-math.log(4)], [0.0])
    Dpo(beta=1.0, label_smoothing=0.2)(pairs).loss.sum().backward()
    assert pairs.chosen.grad.item() == pytest.approx(0.0, abs=1e-15)
