"""Preference pairs: what an objective is given, what it returns, and the base class of pair objectives.

Shapes: `pairs` is the number of preference pairs in the batch; `time` the longest completion in it, chosen
and rejected each with their own. Log-probs are in nats. Only completion tokens count (the end-of-turn token
is one, the prompt's tokens are not); masks are True exactly there, and nothing behind a False, NaN
included, can reach the loss or its gradient.

Notation in the docstrings: l_t the log-prob of one token, S their sum over a completion, l̄ their mean, R
the sum under the frozen reference; w chosen, l rejected; Δ = l̄_w − l̄_l; σ the logistic function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.objectives.base import Kind, Objective
from holdfast.objectives.hyperparameters import choice
from holdfast.objectives.numerics import at_least_float32


class PairLogps(NamedTuple):
    """Per-token log-probs of a batch of preference pairs."""

    chosen: Tensor  # (pairs, time) log-prob of each completion token, nats, <= 0
    rejected: Tensor  # (pairs, time)
    chosen_mask: Tensor  # (pairs, time) bool
    rejected_mask: Tensor  # (pairs, time) bool
    reference_chosen: Tensor | None = None  # (pairs,) summed log-prob under the reference, nats
    reference_rejected: Tensor | None = None  # (pairs,)
    rejected_tokens_per_pair: float | Tensor | None = None  # of the global batch; None: of these tensors


class ObjectiveTerms(NamedTuple):
    """What an objective makes of a batch. The caller reduces, by one mean over the global batch's pairs."""

    loss: Tensor  # (pairs,) unreduced, differentiable
    parts: dict[str, Tensor]  # each (pairs,), weighted so that they add up to the loss; detached
    rewards_chosen: Tensor  # (pairs,) the implicit reward whose difference the objective compares; detached
    rewards_rejected: Tensor  # (pairs,) detached
    satisfied: Tensor  # (pairs,) bool: the pair's margin has reached the objective's target

    @classmethod
    def of(
        cls,
        parts: Mapping[str, Tensor],
        *,
        rewards_chosen: Tensor,
        rewards_rejected: Tensor,
        satisfied: Tensor | None = None,
    ) -> ObjectiveTerms:
        """Add the parts up and detach all but the loss; by default a positive reward margin satisfies."""
        chosen, rejected = rewards_chosen.detach(), rewards_rejected.detach()
        return cls(
            loss=reduce(add, parts.values()),
            parts={name: part.detach() for name, part in parts.items()},
            rewards_chosen=chosen,
            rewards_rejected=rejected,
            satisfied=chosen > rejected if satisfied is None else satisfied.detach(),
        )


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask`, 0 elsewhere, at least in float32; what the mask hides has a gradient of 0."""
    return torch.where(mask, at_least_float32(values), 0.0)


def sum_logp(logps: Tensor, mask: Tensor) -> Tensor:
    """S: the summed log-prob of each completion, (pairs, time) -> (pairs,), nats."""
    return masked(logps, mask).sum(-1)


def mean_logp(logps: Tensor, mask: Tensor) -> Tensor:
    """l̄: the mean log-prob per token of each completion, (pairs, time) -> (pairs,), nats per token.

    Raises ValueError where a row of the mask is empty; on CUDA, as in `require_tokens`.
    """
    require_tokens(mask, "mean_logp")
    return sum_logp(logps, mask) / mask.sum(-1)


def require_tokens(mask: Tensor, what: str) -> None:
    """Refuse a completion without tokens.

    On CUDA it is an assertion on the device: reading the answer here would stall every step.
    """
    filled = mask.any(-1)
    if mask.is_cuda or mask.is_meta:  # a meta tensor has no answer to read
        torch._assert_async(filled.all(), f"{what}: a pair has no unmasked completion token")
    elif not bool(filled.all()):
        rows = (~filled).nonzero().flatten().tolist()
        raise ValueError(
            f"{what}: pairs {rows} have no unmasked token; drop them or mend their completion masks"
        )


def chosen_nll(pairs: PairLogps, reduction: str) -> Tensor:
    """NLL of each chosen completion, (pairs,): "mean" −l̄_w in nats per token, "sum" −S_w in nats."""
    pool = mean_logp if reduction == "mean" else sum_logp
    return -pool(pairs.chosen, pairs.chosen_mask)


def nll_reduction() -> Any:
    """The field of the objectives that add or are the chosen completion's NLL."""
    return choice(
        "mean",
        "NLL_w per completion: mean (−l̄_w, the field's code) or sum (−S_w, the text)",
        among=("mean", "sum"),
    )


def weighted(weight: float, term: Tensor) -> Tensor:
    """weight · term; a weight of 0 removes the term, so that 0 · ∞ cannot become NaN."""
    return weight * term if weight else torch.zeros_like(term)


def reference_log_ratios(pairs: PairLogps) -> tuple[Tensor, Tensor]:
    """S − R of the chosen and of the rejected completions, each (pairs,), nats."""
    assert pairs.reference_chosen is not None  # checked in PairObjective.__call__
    assert pairs.reference_rejected is not None
    reference_chosen = at_least_float32(pairs.reference_chosen.detach())
    reference_rejected = at_least_float32(pairs.reference_rejected.detach())
    return (
        sum_logp(pairs.chosen, pairs.chosen_mask) - reference_chosen,
        sum_logp(pairs.rejected, pairs.rejected_mask) - reference_rejected,
    )


@dataclass(frozen=True)
class PairObjective(Objective, ABC):
    """An objective on preference pairs: `objective(pairs) -> ObjectiveTerms`.

    Calling it raises ValueError for tensors whose shapes or dtypes do not fit, for a completion without
    tokens, and for a missing reference where the objective needs one.
    """

    kind: ClassVar[Kind] = "pair"

    def __call__(self, pairs: PairLogps) -> ObjectiveTerms:
        self._check(pairs)
        return self.terms(pairs)

    @abstractmethod
    def terms(self, pairs: PairLogps) -> ObjectiveTerms:
        """The maths, on tensors already checked."""

    def _check(self, pairs: PairLogps) -> None:
        count = pairs.chosen.shape[0] if pairs.chosen.dim() else 0
        sides = {
            "chosen": (pairs.chosen, pairs.chosen_mask),
            "rejected": (pairs.rejected, pairs.rejected_mask),
        }
        for side, (logps, mask) in sides.items():
            if logps.dim() != 2 or logps.shape != mask.shape or logps.shape[0] != count:
                raise ValueError(
                    f"{self.name}: {side} and {side}_mask must both be ({count} pairs, time), "
                    f"got {tuple(logps.shape)} and {tuple(mask.shape)}"
                )
            if mask.dtype != torch.bool:
                raise ValueError(f"{self.name}: {side}_mask must be bool, got {mask.dtype}")
            require_tokens(mask, f"{self.name}: {side}")
        per_pair = pairs.rejected_tokens_per_pair
        if isinstance(per_pair, float | int) and not per_pair > 0:
            raise ValueError(f"{self.name}: rejected_tokens_per_pair must be > 0, got {per_pair!r}")
        if self.needs_reference:
            references = {
                "reference_chosen": pairs.reference_chosen,
                "reference_rejected": pairs.reference_rejected,
            }
            for name, reference in references.items():
                if reference is None:
                    raise ValueError(
                        f"{self.name} compares with a frozen reference: pass {name}, the ({count},) summed "
                        "log-probs of the completions under it"
                    )
                if reference.shape != (count,):
                    raise ValueError(f"{self.name}: {name} must be ({count},), got {tuple(reference.shape)}")
