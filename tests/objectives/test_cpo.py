"""CPO and CPO-SimPO by hand."""

from __future__ import annotations

import math

import pytest

from holdfast.objectives import Cpo, CpoSimPo, SimPo


@pytest.fixture
def pairs(make_pairs):
    return make_pairs([[-0.5, -1.5]], [[-5.0]])  # S_w = −2, l̄_w = −1; S_l = l̄_l = −5


def test_cpo(pairs) -> None:
    terms = Cpo(beta=0.1, nll_weight=0.5)(pairs)  # h = 0.1 · 3 = 0.3; NLL 0.5 · 1
    assert terms.parts["preference"].item() == pytest.approx(math.log1p(math.exp(-0.3)))
    assert terms.parts["nll"].item() == pytest.approx(0.5)
    assert (terms.rewards_chosen.item(), terms.rewards_rejected.item()) == pytest.approx((-0.2, -0.5))
    assert terms.satisfied.item()


def test_nll_by_the_sum(pairs) -> None:
    assert Cpo(nll_reduction="sum")(pairs).parts["nll"].item() == pytest.approx(2.0)
    assert CpoSimPo(nll_reduction="sum")(pairs).parts["nll"].item() == pytest.approx(2.0)


def test_cpo_simpo_is_simpo_plus_nll(pairs) -> None:
    terms, simpo = CpoSimPo(gamma=9.0, nll_weight=2.0)(pairs), SimPo(gamma=9.0)(pairs)
    assert terms.loss.item() == pytest.approx(simpo.loss.item() + 2.0 * 1.0)
    assert terms.rewards_chosen.equal(simpo.rewards_chosen)
    assert not terms.satisfied.item()  # the reward margin, 8, is positive but short of γ


def test_cpo_simpo_takes_the_ratio_too() -> None:
    assert CpoSimPo(gamma_beta_ratio=0.1) == CpoSimPo(gamma=0.2)
