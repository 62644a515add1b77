"""SFT on the chosen completions, by hand."""

from __future__ import annotations

import pytest

from holdfast.objectives import SftOnChosen


def test_mean_and_sum(make_pairs) -> None:
    pairs = make_pairs([[-0.5, -1.5], [-3.0]], [[-5.0], [-2.0]])
    terms = SftOnChosen()(pairs)
    assert terms.loss.tolist() == [1.0, 3.0]
    assert SftOnChosen(nll_reduction="sum")(pairs).loss.tolist() == [2.0, 3.0]
    assert terms.rewards_rejected.tolist() == [-5.0, -2.0]
    assert terms.satisfied.tolist() == [True, False]


def test_the_rejected_completion_does_not_train(make_pairs) -> None:
    pairs = make_pairs([[-0.5]], [[-5.0]])
    SftOnChosen()(pairs).loss.sum().backward()
    assert pairs.rejected.grad is None
    assert pairs.chosen.grad.item() == pytest.approx(-1.0)
