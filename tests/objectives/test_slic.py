"""SLiC by hand, inside and beyond its margin."""

from __future__ import annotations

import pytest

from holdfast.objectives import Slic


@pytest.fixture
def pairs(make_pairs):
    return make_pairs([[-0.5, -1.5]], [[-5.0]])  # S_w − S_l = −2 + 5 = 3, l̄_w = −1


def test_inside_the_margin(pairs) -> None:
    terms = Slic(margin=4.0, nll_weight=0.5)(pairs)
    assert terms.parts["margin"].item() == pytest.approx(1.0)
    assert terms.parts["nll"].item() == pytest.approx(0.5)
    assert not terms.satisfied.item()


def test_beyond_the_margin_only_the_nll_remains(pairs) -> None:
    terms = Slic(margin=3.0, nll_reduction="sum")(pairs)
    assert terms.parts["margin"].item() == 0
    assert terms.loss.item() == pytest.approx(2.0)
    assert terms.satisfied.item()
    terms.loss.sum().backward()
    assert pairs.rejected.grad.tolist() == [[0.0]]
