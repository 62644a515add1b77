"""SimPO by hand, and its two ways to name the margin."""

from __future__ import annotations

import math

import pytest

from holdfast.objectives import SimPo, objective_spec, resolve_objective


def test_loss_rewards_and_target(make_pairs) -> None:
    # l̄_w = −1, l̄_l = −2: β · 1 − γ = 2 − 0.5 = 1.5
    terms = SimPo(beta=2.0, gamma=0.5)(make_pairs([[-0.5, -1.5]], [[-2.0]]))
    assert terms.loss.item() == pytest.approx(math.log1p(math.exp(-1.5)))
    assert (terms.rewards_chosen.item(), terms.rewards_rejected.item()) == (-2.0, -4.0)
    assert terms.satisfied.item()


def test_satisfied_from_exactly_gamma_on(make_pairs) -> None:
    pairs = make_pairs([[-1.0]], [[-2.0]])
    assert SimPo(beta=2.0, gamma=2.0)(pairs).satisfied.item()
    assert not SimPo(beta=2.0, gamma=2.1)(pairs).satisfied.item()


def test_length_does_not_count(make_pairs) -> None:
    short, long = make_pairs([[-1.0]], [[-2.0]]), make_pairs([[-1.0] * 5], [[-2.0] * 3])
    assert SimPo()(short).loss.item() == pytest.approx(SimPo()(long).loss.item())


def test_gamma_beta_ratio_is_another_name_for_gamma() -> None:
    built = SimPo(beta=2.5, gamma_beta_ratio=0.4)
    assert built == SimPo(beta=2.5, gamma=1.0)
    assert built.gamma == pytest.approx(1.0)
    assert resolve_objective(objective_spec(built)) == built


def test_a_ratio_of_zero_is_a_ratio() -> None:
    assert SimPo(gamma_beta_ratio=0).gamma == 0
