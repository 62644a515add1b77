"""One table of pair objectives, and the contract that each of them keeps.

Every registered pair objective stands in `CASES` with an independent reference: plain Python on plain
lists, one pair at a time, written from the formulas alone. A registered objective without a case fails the
first test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from holdfast.objectives import (
    PairLogps,
    PairObjective,
    list_objectives,
    objective_spec,
    resolve_objective,
)


@dataclass
class Pair:
    """One pair as plain numbers."""

    chosen: list[float]
    rejected: list[float]
    reference_chosen: float
    reference_rejected: float
    tokens_per_pair: float


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def nll_of(margin: float) -> float:
    """−log σ(margin)"""
    return softplus(-margin)


def slime(a=0.1, s=0.1, d=1.0, delta=1.25, p=2.5, hard=1.5, soft=1.0, kappa=2.5, sequence=False):
    """`hard` or `soft` None: without that factor."""

    def loss(pair: Pair) -> float:
        gap = mean(pair.chosen) - mean(pair.rejected)
        penalties = math.fsum(softplus(-x - delta) ** p for x in pair.rejected)
        stabilizer = penalties / (len(pair.rejected) if sequence else pair.tokens_per_pair)
        hinge = 1.0 if hard is None else max(0.0, hard - gap)
        gate = 1.0 if soft is None else sigmoid(-kappa * (gap - soft))
        margin = 0.0 if hard is None and soft is None else hinge * gate
        return -a * mean(pair.chosen) + s * stabilizer + d * margin

    return loss


def dpo(beta=0.1, smoothing=0.0, robust=False):
    def loss(pair: Pair) -> float:
        chosen = math.fsum(pair.chosen) - pair.reference_chosen
        rejected = math.fsum(pair.rejected) - pair.reference_rejected
        kept, flipped = nll_of(beta * (chosen - rejected)), nll_of(-beta * (chosen - rejected))
        if robust:
            return ((1 - smoothing) * kept - smoothing * flipped) / (1 - 2 * smoothing)
        return (1 - smoothing) * kept + smoothing * flipped

    return loss


def ipo(beta=0.1, normalized=False):
    def loss(pair: Pair) -> float:
        chosen = math.fsum(pair.chosen) - pair.reference_chosen
        rejected = math.fsum(pair.rejected) - pair.reference_rejected
        if normalized:
            chosen, rejected = chosen / len(pair.chosen), rejected / len(pair.rejected)
        return (chosen - rejected - 1 / (2 * beta)) ** 2

    return loss


def simpo(beta=2.0, gamma=1.0, alpha=0.0, pool=mean):
    return lambda pair: (
        nll_of(beta * (mean(pair.chosen) - mean(pair.rejected)) - gamma) - alpha * pool(pair.chosen)
    )


def cpo(beta=0.1, alpha=1.0, pool=mean):
    return lambda pair: (
        nll_of(beta * (math.fsum(pair.chosen) - math.fsum(pair.rejected))) - alpha * pool(pair.chosen)
    )


def log_odds(x: float) -> float:
    return x - math.log(-math.expm1(x))


def orpo(weight=0.1):
    return lambda pair: (
        -mean(pair.chosen) + weight * nll_of(log_odds(mean(pair.chosen)) - log_odds(mean(pair.rejected)))
    )


def slic(margin=1.0, weight=1.0, pool=mean):
    return lambda pair: (
        max(0.0, margin - (math.fsum(pair.chosen) - math.fsum(pair.rejected))) - weight * pool(pair.chosen)
    )


@dataclass
class Case:
    spec: dict[str, object]
    reference: Callable[[Pair], float]

    @property
    def objective(self) -> PairObjective:
        built = resolve_objective(self.spec)
        assert isinstance(built, PairObjective)
        return built


CASES = {
    "slime": Case({"name": "slime"}, slime()),
    "slime-settings": Case(
        {
            "name": "slime",
            "anchor_weight": 0.3,
            "margin_weight": 2,
            "threshold": 0.5,
            "exponent": 1,
            "sharpness": 4,
        },
        slime(a=0.3, d=2.0, delta=0.5, p=1.0, kappa=4.0),
    ),
    "slime-train": Case({"name": "slime", "preset": "trl-slime-train"}, slime(s=0.0005)),
    "slime-config": Case({"name": "slime", "preset": "trl-slime-config"}, slime(a=0.8, s=0.0005, delta=0.5)),
    "slime-sequence": Case({"name": "slime", "stabilizer_reduction": "sequence"}, slime(sequence=True)),
    "slime-no-soft": Case({"name": "slime", "use_soft_margin": False}, slime(soft=None)),
    "slime-no-hard": Case({"name": "slime", "use_hard_margin": False}, slime(hard=None)),
    "slime-no-margin": Case(
        {"name": "slime", "use_hard_margin": False, "use_soft_margin": False}, slime(hard=None, soft=None)
    ),
    "slime-no-chosen": Case({"name": "slime", "anchor_weight": 0}, slime(a=0.0)),
    "slime-no-rejected": Case({"name": "slime", "stabilizer_weight": 0}, slime(s=0.0)),
    "dpo": Case({"name": "dpo"}, dpo()),
    "dpo-smoothed": Case({"name": "dpo", "beta": 0.3, "label_smoothing": 0.1}, dpo(0.3, 0.1)),
    "dpo-robust": Case(
        {"name": "dpo", "label_smoothing": 0.1, "variant": "robust"}, dpo(0.1, 0.1, robust=True)
    ),
    "ipo": Case({"name": "ipo"}, ipo()),
    "ipo-normalized": Case(
        {"name": "ipo", "length_normalized": True, "beta": 0.5}, ipo(0.5, normalized=True)
    ),
    "simpo": Case({"name": "simpo"}, simpo()),
    "simpo-ratio": Case({"name": "simpo", "beta": 2.5, "gamma_beta_ratio": 0.3}, simpo(2.5, 0.75)),
    "cpo": Case({"name": "cpo"}, cpo()),
    "cpo-sum": Case({"name": "cpo", "nll_weight": 0.5, "nll_reduction": "sum"}, cpo(0.1, 0.5, math.fsum)),
    "cpo_simpo": Case({"name": "cpo_simpo"}, simpo(alpha=1.0)),
    "cpo_simpo-sum": Case(
        {"name": "cpo_simpo", "gamma": 0.2, "nll_weight": 0.5, "nll_reduction": "sum"},
        simpo(2.0, 0.2, 0.5, math.fsum),
    ),
    "orpo": Case({"name": "orpo"}, orpo()),
    "orpo-heavy": Case({"name": "orpo", "weight": 1.5}, orpo(1.5)),
    "slic": Case({"name": "slic"}, slic()),
    "slic-sum": Case(
        {"name": "slic", "margin": 4, "nll_weight": 0.1, "nll_reduction": "sum"}, slic(4.0, 0.1, math.fsum)
    ),
    "sft": Case({"name": "sft"}, lambda pair: -mean(pair.chosen)),
    "sft-sum": Case({"name": "sft", "nll_reduction": "sum"}, lambda pair: -math.fsum(pair.chosen)),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_objective = pytest.mark.parametrize("name", list_objectives("pair"))


def test_every_registered_pair_objective_has_a_case() -> None:
    assert {case.spec["name"] for case in CASES.values()} == set(list_objectives("pair"))


def random_batch(
    count: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64, longest: int = 6
) -> PairLogps:
    """Completions of 1 to `longest` tokens; both masks and both references set."""
    generator = torch.Generator().manual_seed(seed)

    def side() -> tuple[Tensor, Tensor]:
        logps = -3 * torch.rand(count, longest, generator=generator, dtype=torch.float64)
        lengths = torch.randint(1, longest + 1, (count, 1), generator=generator)
        return logps.to(dtype).requires_grad_(), torch.arange(longest) < lengths

    (chosen, chosen_mask), (rejected, rejected_mask) = side(), side()
    references = -8 * torch.rand(2, count, generator=generator, dtype=torch.float64)
    return PairLogps(chosen, rejected, chosen_mask, rejected_mask, references[0], references[1])


def as_numbers(batch: PairLogps) -> list[Pair]:
    tokens_per_pair = batch.rejected_tokens_per_pair
    if tokens_per_pair is None:
        tokens_per_pair = batch.rejected_mask.sum().item() / len(batch.rejected)
    rows = range(len(batch.chosen))
    assert batch.reference_chosen is not None
    assert batch.reference_rejected is not None
    return [
        Pair(
            batch.chosen[i][batch.chosen_mask[i]].tolist(),
            batch.rejected[i][batch.rejected_mask[i]].tolist(),
            batch.reference_chosen[i].item(),
            batch.reference_rejected[i].item(),
            float(tokens_per_pair),
        )
        for i in rows
    ]


def rows_of(batch: PairLogps, rows: object) -> PairLogps:
    """The batch's pairs at `rows`, a slice or an index tensor."""
    return PairLogps(*(value[rows] if isinstance(value, Tensor) else value for value in batch))


def gradients(batch: PairLogps, loss: Tensor) -> tuple[Tensor, Tensor]:
    """∂loss/∂chosen and ∂loss/∂rejected; zeros where an objective does not use a side."""
    found = torch.autograd.grad(loss, (batch.chosen, batch.rejected), allow_unused=True)
    return tuple(
        torch.zeros_like(leaf) if gradient is None else gradient
        for gradient, leaf in zip(found, (batch.chosen, batch.rejected), strict=True)
    )


@every_case
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_plain_reference(case: Case, seed: int) -> None:
    batch = random_batch(seed=seed)
    expected = [case.reference(pair) for pair in as_numbers(batch)]
    assert case.objective(batch).loss.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-10)


@every_case
def test_agrees_on_one_token_completions_and_certain_or_hopeless_tokens(case: Case, make_pairs) -> None:
    batch = make_pairs(
        [[-0.7], [0.0, -1.0], [-1e4, -0.5], [-1e-12, -2.0]],
        [[-1.3], [-2.0, -1e4], [0.0, -0.2], [-1e4]],
        [-1.0, -2.0, -3.0, -4.0],
        [-2.0, -1.0, -4.0, -3.0],
        tokens_per_pair=7.5,
    )
    expected = [case.reference(pair) for pair in as_numbers(batch)]
    assert case.objective(batch).loss.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-10)


@every_case
def test_gradcheck(case: Case) -> None:
    batch = random_batch(count=3, longest=4, seed=1)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return case.objective(batch._replace(chosen=chosen, rejected=rejected)).loss

    assert torch.autograd.gradcheck(loss, (batch.chosen, batch.rejected))


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_certainty_and_hopelessness_stay_finite(case: Case, make_pairs, dtype: torch.dtype) -> None:
    # float16 is left out: its gradients, not the maths, overflow beyond 65504.
    rows = [[0.0], [-1e4], [0.0, 0.0], [-1e4, -1e4], [0.0, -1e4], [-1e-12]]
    batch = make_pairs(rows, rows[::-1], [-1.0] * 6, [-1.0] * 6, dtype=dtype)
    terms = case.objective(batch)
    assert torch.isfinite(terms.loss).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(batch, terms.loss.sum()))


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    half = random_batch(dtype=dtype, seed=2)
    half = half._replace(
        reference_chosen=half.reference_chosen.to(dtype), reference_rejected=half.reference_rejected.to(dtype)
    )
    single = PairLogps(*(v.float() if torch.is_floating_point(v) else v for v in half[:6]))
    assert case.objective(half).loss.dtype == torch.float32
    assert case.objective(half).loss.equal(case.objective(single).loss)
    assert gradients(half, case.objective(half).loss.sum())[0].dtype == dtype


@every_case
def test_float64_stays_float64(case: Case) -> None:
    terms = case.objective(random_batch())
    assert {t.dtype for t in (terms.loss, terms.rewards_chosen, terms.rewards_rejected)} == {torch.float64}


@every_case
def test_terms_fit_together(case: Case) -> None:
    batch = random_batch()
    terms = case.objective(batch)
    shape = terms.loss.shape
    assert shape == (5,)
    torch.testing.assert_close(sum(terms.parts.values()), terms.loss, rtol=1e-12, atol=1e-12)
    for value in (*terms.parts.values(), terms.rewards_chosen, terms.rewards_rejected, terms.satisfied):
        assert value.shape == shape
        assert not value.requires_grad
    assert terms.satisfied.dtype == torch.bool


@every_case
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_completion_without_tokens_is_refused_by_number(case: Case, side: str) -> None:
    batch = random_batch()
    mask = getattr(batch, f"{side}_mask").clone()
    mask[[1, 3]] = False
    with pytest.raises(ValueError, match=rf"{side}: pairs \[1, 3\] have no unmasked token"):
        case.objective(batch._replace(**{f"{side}_mask": mask}))


@every_case
def test_padding_cannot_be_seen(case: Case) -> None:
    batch = random_batch()
    objective = case.objective
    loss = objective(batch).loss
    garbage = torch.tensor([float("nan"), float("-inf"), float("inf"), 1.0]).double().expand(5, 4)
    nowhere = torch.zeros(5, 4, dtype=torch.bool)
    longer = batch._replace(
        chosen=torch.cat([batch.chosen.detach(), garbage], 1).requires_grad_(),
        rejected=torch.cat([batch.rejected.detach(), garbage], 1).requires_grad_(),
        chosen_mask=torch.cat([batch.chosen_mask, nowhere], 1),
        rejected_mask=torch.cat([batch.rejected_mask, nowhere], 1),
    )
    longer_loss = objective(longer).loss
    torch.testing.assert_close(longer_loss, loss, rtol=1e-13, atol=1e-13)
    for wide, narrow in zip(gradients(longer, longer_loss.sum()), gradients(batch, loss.sum()), strict=True):
        torch.testing.assert_close(wide[:, :6], narrow, rtol=1e-13, atol=1e-13)
        assert not wide[:, 6:].any()


@every_case
def test_the_order_of_pairs_does_not_matter(case: Case) -> None:
    batch = random_batch()
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = case.objective(rows_of(batch, order))
    torch.testing.assert_close(shuffled.loss, case.objective(batch).loss[order], rtol=1e-13, atol=1e-13)
    assert shuffled.satisfied.equal(case.objective(batch).satisfied[order])


@every_case
@pytest.mark.parametrize("cuts", [[1, 4], [2, 3], [1, 1, 1, 1, 1]])
def test_micro_batches_add_up_to_the_global_batch(case: Case, cuts: list[int]) -> None:
    batch = random_batch()
    objective = case.objective
    whole = objective(batch).loss.sum()
    known = batch._replace(rejected_tokens_per_pair=batch.rejected_mask.sum().item() / 5)
    pieces = sum(objective(rows_of(known, rows)).loss.sum() for rows in torch.arange(5).split(cuts))
    torch.testing.assert_close(pieces, whole, rtol=1e-13, atol=1e-13)
    for part, full in zip(gradients(batch, pieces), gradients(batch, whole), strict=True):
        torch.testing.assert_close(part, full, rtol=1e-12, atol=1e-13)


@every_case
def test_the_reference_matters_exactly_where_it_is_needed(case: Case) -> None:
    batch = random_batch()
    without = batch._replace(reference_chosen=None, reference_rejected=None)
    if case.objective.needs_reference:
        with pytest.raises(ValueError, match="pass reference_chosen"):
            case.objective(without)
        moved = case.objective(batch._replace(reference_chosen=batch.reference_chosen - 1)).loss
        assert (moved != case.objective(batch).loss).all()
    else:
        poisoned = batch._replace(reference_chosen=torch.full((5,), float("nan")))
        assert case.objective(without).loss.equal(case.objective(poisoned).loss)


@every_case
def test_nothing_is_read_back_from_the_device(case: Case) -> None:
    """A meta tensor has shapes and no values: whatever would stall a GPU to look at one fails here."""
    logps = torch.empty(3, 4, device="meta", requires_grad=True)
    mask, reference = torch.empty(3, 4, dtype=torch.bool, device="meta"), torch.empty(3, device="meta")
    terms = case.objective(PairLogps(logps, logps, mask, mask, reference, reference))
    terms.loss.sum().backward()
    assert terms.loss.shape == (3,)


@every_case
def test_hashable_and_round_trips_through_json(case: Case) -> None:
    built = case.objective
    again = resolve_objective(json.loads(json.dumps(objective_spec(built))))
    assert again == built
    assert hash(again) == hash(built)
    assert len({built, again}) == 1


@every_objective
@given(seed=st.integers(0, 10_000), step=st.floats(1e-4, 2.0))
@settings(max_examples=30)
def test_the_loss_never_falls_as_the_chosen_completion_loses(name: str, seed: int, step: float) -> None:
    """Lowering every chosen token raises the loss, or leaves it (IPO is a square: below its target)."""
    objective = resolve_objective(name)
    assert isinstance(objective, PairObjective)
    batch = random_batch(seed=seed)
    before = objective(batch)
    after = objective(batch._replace(chosen=batch.chosen - step))
    compared = ~before.satisfied if name == "ipo" else torch.ones(5, dtype=torch.bool)
    assert (after.loss >= before.loss)[compared].all()
    assert (after.rewards_chosen < before.rewards_chosen).all()
