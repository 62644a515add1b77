"""CPO and CPO-SimPO: a reference-free preference loss plus the chosen NLL (arXiv 2401.08417)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from holdfast.objectives.dpo import preference_nll
from holdfast.objectives.hyperparameters import number
from holdfast.objectives.pairs import (
    ObjectiveTerms,
    PairLogps,
    PairObjective,
    chosen_nll,
    nll_reduction,
    sum_logp,
    weighted,
)
from holdfast.objectives.simpo import SimPo

NLL_NOTE = (
    "The chosen NLL: TRL averages it over all chosen tokens of a micro-batch, so long completions weigh "
    "more and the gradient depends on how the batch is cut; here it is one number per completion "
    "(nll_reduction)."
)


@dataclass(frozen=True)
class Cpo(PairObjective):
    """CPO: DPO's form without the reference, plus the chosen NLL.

        −log σ(β(S_w − S_l)) + α NLL_w     (2401.08417)

    Parts: "preference", "nll". Rewards: β S. Satisfied: a positive reward margin.
    """

    name: ClassVar[str] = "cpo"
    paper: ClassVar[str] = (
        "arXiv:2401.08417, Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in "
        "Machine Translation"
    )
    formula: ClassVar[str] = "−log σ(β(S_w − S_l)) + α·NLL_w"
    notes: ClassVar[tuple[str, ...]] = (NLL_NOTE,)

    beta: float = number(0.1, "β, scale of the summed log-probs", above=0)
    nll_weight: float = number(1.0, "α, weight of the chosen completion's NLL", at_least=0)
    nll_reduction: str = nll_reduction()

    def terms(self, pairs: PairLogps) -> ObjectiveTerms:
        chosen = self.beta * sum_logp(pairs.chosen, pairs.chosen_mask)
        rejected = self.beta * sum_logp(pairs.rejected, pairs.rejected_mask)
        parts = {
            "preference": preference_nll(chosen - rejected),
            "nll": weighted(self.nll_weight, chosen_nll(pairs, self.nll_reduction)),
        }
        return ObjectiveTerms.of(parts, rewards_chosen=chosen, rewards_rejected=rejected)


@dataclass(frozen=True)
class CpoSimPo(SimPo):
    """CPO-SimPO: SimPO's loss plus the chosen NLL.

        −log σ(β(l̄_w − l̄_l) − γ) + α NLL_w

    Parts: "preference", "nll". Rewards and satisfied: SimPO's.
    """

    name: ClassVar[str] = "cpo_simpo"
    paper: ClassVar[str] = (
        "CPO_SIMPO (public code, github.com/fe1ixxu/CPO_SIMPO), joining arXiv:2405.14734 and 2401.08417"
    )
    formula: ClassVar[str] = "−log σ(β(l̄_w − l̄_l) − γ) + α·NLL_w"
    notes: ClassVar[tuple[str, ...]] = (
        "What TRL's CPO trainer computes for loss_type simpo with its default cpo_alpha of 1.0, and the "
        '"SimPO" baseline of the SLIME paper (γ 0.2 there).',
        NLL_NOTE,
    )

    nll_weight: float = number(1.0, "α, weight of the chosen completion's NLL", at_least=0)
    nll_reduction: str = nll_reduction()

    def terms(self, pairs: PairLogps) -> ObjectiveTerms:
        simpo = super().terms(pairs)
        parts = {
            "preference": simpo.loss,
            "nll": weighted(self.nll_weight, chosen_nll(pairs, self.nll_reduction)),
        }
        return ObjectiveTerms.of(
            parts,
            rewards_chosen=simpo.rewards_chosen,
            rewards_rejected=simpo.rewards_rejected,
            satisfied=simpo.satisfied,
        )
