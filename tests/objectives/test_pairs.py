"""Masked sums and means, the checks on a batch, and how terms are put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from holdfast.objectives import Dpo, ObjectiveTerms, PairObjective, Slime, mean_logp, sum_logp
from holdfast.objectives.pairs import require_tokens, weighted


def test_sum_and_mean_by_hand() -> None:
    logps = torch.tensor([[-1.0, -2.0, -9.0], [-4.0, -9.0, -9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert sum_logp(logps, mask).tolist() == [-3.0, -4.0]
    assert mean_logp(logps, mask).tolist() == [-1.5, -4.0]


@pytest.mark.parametrize("garbage", [float("nan"), float("-inf"), float("inf")])
def test_what_the_mask_hides_has_no_gradient(garbage: float) -> None:
    logps = torch.tensor([[-1.0, garbage]], requires_grad=True)
    mean_logp(logps, torch.tensor([[True, False]])).sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [[1.0, 0.0]]


def test_a_mask_may_have_holes() -> None:
    logps = torch.tensor([[-1.0, float("nan"), -3.0]])
    assert mean_logp(logps, torch.tensor([[True, False, True]])).tolist() == [-2.0]


def test_half_precision_is_summed_in_float32() -> None:
    # In bfloat16 (8 bits) 256 + 1 rounds back to 256; in float32 the sum of 300 ones is exact.
    logps = -torch.ones(1, 300, dtype=torch.bfloat16)
    total = sum_logp(logps, torch.ones(1, 300, dtype=torch.bool))
    assert total.dtype == torch.float32
    assert total.item() == -300


def test_an_empty_row_is_named() -> None:
    mask = torch.tensor([[True], [False], [True], [False]])
    with pytest.raises(ValueError, match=r"pairs \[1, 3\] have no unmasked token"):
        mean_logp(torch.zeros(4, 1), mask)
    assert sum_logp(torch.zeros(4, 1), mask).tolist() == [0.0] * 4  # an empty sum is 0


def test_the_check_for_empty_rows_reads_nothing_back_from_an_accelerator() -> None:
    mask = torch.empty(2, 3, dtype=torch.bool, device="meta")
    require_tokens(mask, "test")
    with pytest.raises(RuntimeError):
        bool(mask.any())  # what a host-side check would have done


def test_a_weight_of_zero_removes_its_term() -> None:
    infinite = torch.tensor([float("inf")])
    assert weighted(0.0, infinite).tolist() == [0.0]
    assert weighted(2.0, torch.tensor([3.0])).tolist() == [6.0]


def test_terms_add_up_and_are_detached() -> None:
    first, second = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([10.0, 20.0])
    terms = ObjectiveTerms.of(
        {"a": first, "b": second}, rewards_chosen=first, rewards_rejected=torch.tensor([1.0, 0.0])
    )
    assert terms.loss.tolist() == [11.0, 22.0]
    assert terms.loss.requires_grad
    assert not terms.parts["a"].requires_grad
    assert not terms.rewards_chosen.requires_grad
    assert terms.satisfied.tolist() == [False, True]  # a margin of exactly 0 is not positive


def test_shapes_and_dtypes_are_checked(make_pairs) -> None:
    pairs = make_pairs([[-1.0, -2.0]], [[-3.0]])
    objective = Slime()
    with pytest.raises(ValueError, match=r"slime: rejected_mask must be bool, got torch\.int64"):
        objective(pairs._replace(rejected_mask=pairs.rejected_mask.long()))
    with pytest.raises(ValueError, match=r"chosen and chosen_mask must both be \(1 pairs, time\)"):
        objective(pairs._replace(chosen_mask=pairs.chosen_mask[:, :1]))
    with pytest.raises(ValueError, match="rejected and rejected_mask must both be"):
        objective(pairs._replace(rejected=torch.zeros(2, 1), rejected_mask=torch.ones(2, 1).bool()))
    with pytest.raises(ValueError, match="chosen and chosen_mask must both be"):
        objective(pairs._replace(chosen=pairs.chosen[0], chosen_mask=pairs.chosen_mask[0]))
    with pytest.raises(ValueError, match="floating point"):
        objective(pairs._replace(chosen=torch.zeros(1, 2, dtype=torch.int64)))
    with pytest.raises(ValueError, match="rejected_tokens_per_pair must be > 0, got 0"):
        objective(pairs._replace(rejected_tokens_per_pair=0))


def test_a_missing_or_misshapen_reference_is_named(make_pairs) -> None:
    pairs = make_pairs([[-1.0]], [[-2.0]], [-1.0], [-2.0])
    with pytest.raises(ValueError, match=r"pass reference_rejected, the \(1,\) summed"):
        Dpo()(pairs._replace(reference_rejected=None))
    with pytest.raises(ValueError, match=r"reference_chosen must be \(1,\), got \(1, 1\)"):
        Dpo()(pairs._replace(reference_chosen=torch.zeros(1, 1)))


def test_no_gradient_reaches_the_reference(make_pairs) -> None:
    pairs = make_pairs([[-1.0]], [[-2.0]], [-1.0], [-2.0])
    reference = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    Dpo()(pairs._replace(reference_chosen=reference)).loss.sum().backward()
    assert reference.grad is None


def test_a_pair_objective_must_say_its_terms() -> None:
    @dataclass(frozen=True)
    class Silent(PairObjective):
        name: ClassVar[str] = "silent"

    with pytest.raises(TypeError, match="terms"):
        Silent()
