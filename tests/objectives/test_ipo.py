"""IPO by hand, summed and per token."""

from __future__ import annotations

import pytest

from holdfast.objectives import Ipo


@pytest.fixture
def pairs(make_pairs):
    # log-ratios: chosen −3 + 4 = 1 over 2 tokens, rejected −5 + 3 = −2 over 1 token
    return make_pairs([[-1.0, -2.0]], [[-5.0]], [-4.0], [-3.0])


def test_summed(pairs) -> None:
    terms = Ipo(beta=0.1)(pairs)  # target 1/(2β) = 5; (3 − 5)² = 4
    assert terms.loss.item() == pytest.approx(4.0)
    assert (terms.rewards_chosen.item(), terms.rewards_rejected.item()) == (1.0, -2.0)
    assert not terms.satisfied.item()


def test_per_token(pairs) -> None:
    terms = Ipo(beta=0.1, length_normalized=True)(pairs)  # ½ + 2 = 2.5; (2.5 − 5)² = 6.25
    assert terms.loss.item() == pytest.approx(6.25)
    assert terms.rewards_chosen.item() == pytest.approx(0.5)


def test_beyond_the_target_it_pulls_back(pairs) -> None:
    terms = Ipo(beta=0.25)(pairs)  # target 2 < 3
    terms.loss.sum().backward()
    assert terms.satisfied.item()
    assert pairs.chosen.grad.tolist() == [[2.0, 2.0]]  # 2 (3 − 2) on every chosen token: their log-prob falls
