"""SLIME by hand, its gradients against appendix A, its switches, and how a batch may be cut."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.objectives import PairLogps, Slime, get_objective
from holdfast.objectives.slime import anchor, hard_hinge, soft_gate, token_penalty

LOG2 = math.log(2.0)
logp = st.floats(-60.0, 0.0)
gap = st.floats(-20.0, 20.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def leaf(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def slope(function, x: float) -> float:
    at = leaf(x)
    return torch.autograd.grad(function(at), at)[0].item()


def central_difference(function, x: float, step: float = 1e-6) -> float:
    with torch.no_grad():
        return ((function(leaf(x + step)) - function(leaf(x - step))) / (2 * step)).item()


def test_one_pair_by_hand(make_pairs) -> None:
    # l̄_w = (−0.5 − 1.5)/2 = −1, l̄_l = (−1.25 − 2.75)/2 = −2, Δ = 1 = m_s, u = m_h − Δ = 0.5, gate ½.
    terms = Slime()(make_pairs([[-0.5, -1.5]], [[-1.25, -2.75]]))
    assert terms.parts["anchor"].item() == pytest.approx(0.1 * 1.0)
    assert terms.parts["margin"].item() == pytest.approx(0.5 * 0.5)
    # softplus(0)^2.5 = log(2)^2.5 = 0.400003; softplus(1.5)^2.5 = 1.701413^2.5 = 3.775937; mean 2.087970
    assert terms.parts["stabilizer"].item() == pytest.approx(0.1 * 2.087970, rel=1e-6)
    assert terms.loss.item() == pytest.approx(0.1 + 0.25 + 0.2087970, rel=1e-6)
    assert terms.rewards_chosen.item() == -1
    assert terms.rewards_rejected.item() == -2
    assert terms.satisfied.tolist() == [False]


def test_token_reduction_pools_over_tokens_and_sequence_over_completions(make_pairs) -> None:
    # One rejected token at −1.25 (penalty a = log(2)^2.5) and three at −2.75 (penalty b = softplus(1.5)^2.5).
    pairs = make_pairs([[-1.0], [-1.0]], [[-1.25], [-2.75] * 3])
    a, b = LOG2**2.5, softplus(1.5) ** 2.5
    token = Slime()(pairs).parts["stabilizer"]
    assert token.mean().item() == pytest.approx(0.1 * (a + 3 * b) / 4)
    assert token.tolist() == pytest.approx([0.1 * a / 2, 0.1 * 3 * b / 2])  # 4 tokens / 2 pairs = 2 per pair
    sequence = Slime(stabilizer_reduction="sequence")(pairs).parts["stabilizer"]
    assert sequence.tolist() == pytest.approx([0.1 * a, 0.1 * b])


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_global_batch_sets_the_token_count(make_pairs, as_tensor: bool) -> None:
    count = torch.tensor(4.0) if as_tensor else 4.0
    pairs = make_pairs([[-1.0]], [[-1.25, -1.25]])._replace(rejected_tokens_per_pair=count)
    assert Slime()(pairs).parts["stabilizer"].item() == pytest.approx(0.1 * 2 * LOG2**2.5 / 4)
    assert Slime(stabilizer_reduction="sequence")(pairs).parts["stabilizer"].item() == pytest.approx(
        0.1 * LOG2**2.5
    )


def test_switches_are_the_papers_ablations(make_pairs) -> None:
    pairs = make_pairs([[-1.0]], [[-2.0]])  # Δ = 1: hinge 0.5, gate 0.5
    full = Slime(margin_weight=2.0)(pairs)
    no_soft = Slime(margin_weight=2.0, use_soft_margin=False)(pairs)
    no_hard = Slime(margin_weight=2.0, use_hard_margin=False, soft_margin=0.6)(pairs)
    neither = Slime(use_hard_margin=False, use_soft_margin=False)(pairs)
    assert full.parts["margin"].item() == pytest.approx(2 * 0.25)
    assert no_soft.parts["margin"].item() == pytest.approx(2 * 0.5)
    assert no_hard.parts["margin"].item() == pytest.approx(2 * sigmoid(-2.5 * 0.4))
    assert neither.parts["margin"].item() == 0
    assert [t.satisfied.item() for t in (full, no_soft, no_hard, neither)] == [False, False, True, True]
    assert not Slime(use_hard_margin=False, soft_margin=1.2)(pairs).satisfied.item()
    assert Slime(anchor_weight=0)(pairs).parts["anchor"].item() == 0
    assert Slime(stabilizer_weight=0)(pairs).parts["stabilizer"].item() == 0


def test_a_term_of_weight_zero_is_absent_even_where_it_is_infinite(make_pairs) -> None:
    pairs = make_pairs([[-1.0]], [[float("-inf")]])
    terms = Slime(stabilizer_weight=0)(pairs)
    assert terms.loss.item() == pytest.approx(0.1)
    assert terms.satisfied.item()


def test_presets_are_the_paper_and_the_public_code() -> None:
    assert get_objective("slime", preset="paper") == Slime() == Slime(0.1, 0.1, 1.0, 1.25, 2.5, 1.5, 1.0, 2.5)
    assert get_objective("slime", preset="trl-slime-train") == Slime(
        0.1, 0.0005, 1.0, 1.25, 2.5, 1.5, 1.0, 2.5
    )
    assert get_objective("slime", preset="trl-slime-config") == Slime(
        0.8, 0.0005, 1.0, 0.5, 2.5, 1.5, 1.0, 2.5
    )


@given(mean=logp)
def test_anchor_gradient(mean: float) -> None:
    # Appendix A: ∂L_w/∂l̄_w = −λ_w, here without the weight
    assert slope(anchor, mean) == -1.0


@given(l=logp, threshold=st.floats(0.0, 5.0), exponent=st.sampled_from([1.0, 1.5, 2.0, 2.5, 3.0]))
def test_stabilizer_gradient(l: float, threshold: float, exponent: float) -> None:  # noqa: E741
    def penalty(x):
        return token_penalty(x, threshold, exponent)

    # Appendix A: −p softplus(−l − δ)^(p−1) σ(−l − δ)
    x = -l - threshold
    expected = -exponent * softplus(x) ** (exponent - 1) * sigmoid(x)
    assert slope(penalty, l) == pytest.approx(expected, rel=1e-12)
    assert central_difference(penalty, l) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@given(delta=gap, kappa=st.floats(0.1, 5.0), hard=st.floats(0.0, 4.0), soft=st.floats(0.0, 4.0))
def test_margin_gradient(delta: float, kappa: float, hard: float, soft: float) -> None:
    def margin(x):
        return hard_hinge(x, hard) * soft_gate(x, soft, kappa)

    if delta >= hard:
        assert slope(margin, delta) == 0.0
        assert margin(leaf(delta)).item() == 0.0
        return
    # Appendix A: with u = m_h − Δ and v = σ(−κ(Δ − m_s)), −(v + κ u v (1 − v))
    u, v, v_complement = hard - delta, sigmoid(-kappa * (delta - soft)), sigmoid(kappa * (delta - soft))
    expected = -(v + kappa * u * v * v_complement)
    assert slope(margin, delta) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if hard - delta > 1e-5:
        assert central_difference(margin, delta) == pytest.approx(expected, rel=1e-5, abs=1e-8)


@given(delta=gap, hard=st.floats(-2.0, 4.0))
def test_whole_objective_stops_pushing_the_gap_once_the_hard_margin_is_met(delta: float, hard: float) -> None:
    """With the anchor and the stabilizer off, gradient on every token is 0 exactly where satisfied."""
    chosen = torch.tensor([[-20.0 + delta, -20.0 + delta]], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([[-20.0]], dtype=torch.float64, requires_grad=True)
    pairs = PairLogps(chosen, rejected, torch.ones(1, 2).bool(), torch.ones(1, 1).bool())
    terms = Slime(anchor_weight=0, stabilizer_weight=0, hard_margin=hard)(pairs)
    (slope_chosen, slope_rejected) = torch.autograd.grad(terms.loss.sum(), (chosen, rejected))
    if terms.satisfied.item():
        assert terms.loss.item() == 0
        assert not slope_chosen.any()
        assert not slope_rejected.any()
    else:
        assert (slope_chosen < 0).all()
        assert (slope_rejected > 0).all()


def test_gradient_at_exactly_the_hard_margin_is_zero() -> None:
    assert slope(lambda x: hard_hinge(x, 1.5), 1.5) == 0.0


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stabilizer_gradient_is_finite_where_softplus_vanishes(exponent: float, dtype: torch.dtype) -> None:
    logps = torch.tensor([-1e4, -1.25, 0.0], dtype=dtype, requires_grad=True)
    # δ = 1000 drives softplus(−l − δ) to exactly 0 at l = 0 and l = −1.25
    penalty = token_penalty(logps, 1000.0, exponent)
    penalty.sum().backward()
    assert logps.grad is not None
    assert torch.isfinite(penalty).all()
    assert torch.isfinite(logps.grad).all()
    assert logps.grad[1:].tolist() == [0.0, 0.0]
    assert logps.grad[0].item() == pytest.approx(-exponent * 9000.0 ** (exponent - 1), rel=1e-5)


def test_a_certain_token_counts_in_the_means(make_pairs) -> None:
    # The public code drops tokens of log-prob 0: its l̄_w would be −2, its stabilizer would skip one token.
    terms = Slime()(make_pairs([[0.0, -2.0]], [[0.0, -2.0]]))
    assert terms.rewards_chosen.item() == -1
    expected = 0.1 * (softplus(-1.25) ** 2.5 + softplus(0.75) ** 2.5) / 2
    assert terms.parts["stabilizer"].item() == pytest.approx(expected)


@given(cut=st.integers(1, 4), seed=st.integers(0, 1000))
def test_loss_and_gradient_do_not_depend_on_the_cut(cut: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    chosen = -3 * torch.rand(5, 4, generator=generator, dtype=torch.float64)
    rejected = -3 * torch.rand(5, 6, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 7, (5, 1), generator=generator)
    mask = torch.arange(6) < lengths
    tokens_per_pair = mask.sum() / 5

    def gradient(slices: list[slice]) -> torch.Tensor:
        leaf = rejected.clone().requires_grad_()
        for part in slices:
            everything = torch.ones(5, 4).bool()[part]
            pairs = PairLogps(chosen[part], leaf[part], everything, mask[part], None, None, tokens_per_pair)
            (Slime()(pairs).loss.sum() / 5).backward()
        assert leaf.grad is not None
        return leaf.grad

    whole, pieces = gradient([slice(0, 5)]), gradient([slice(0, cut), slice(cut, 5)])
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-14)
