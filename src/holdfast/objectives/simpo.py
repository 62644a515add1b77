"""SimPO: DPO's form on mean log-probs, with a target margin and no reference (arXiv 2405.14734)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from holdfast.objectives.dpo import preference_nll
from holdfast.objectives.hyperparameters import number
from holdfast.objectives.pairs import ObjectiveTerms, PairLogps, PairObjective, mean_logp


@dataclass(frozen=True)
class SimPo(PairObjective):
    """SimPO: the Bradley-Terry NLL of mean log-probs beyond a target margin.

        −log σ(β(l̄_w − l̄_l) − γ)     (2405.14734, eq. 6)

    `gamma_beta_ratio` is another way to say γ: it is turned into `gamma` = ratio · β when the objective is
    built, and giving both is a ValueError.

    Parts: "preference". Rewards: β l̄. Satisfied: β(l̄_w − l̄_l) ≥ γ.
    """

    name: ClassVar[str] = "simpo"
    paper: ClassVar[str] = (
        "arXiv:2405.14734, SimPO: Simple Preference Optimization with a Reference-Free Reward"
    )
    formula: ClassVar[str] = "−log σ(β(l̄_w − l̄_l) − γ)"
    notes: ClassVar[tuple[str, ...]] = (
        "γ is on the scale of the reward β·l̄. The authors' code takes γ/β instead: gamma_beta_ratio.",
        "TRL reaches SimPO through its CPO trainer, which adds 1.0 times the chosen NLL unless cpo_alpha "
        "is 0: that sum is cpo_simpo here.",
        "Nothing holds l̄_w up: the loss also falls while both log-probs fall.",
    )

    beta: float = number(2.0, "β, scale of the reward β·l̄", above=0)
    gamma: float = number(1.0, "γ, target reward margin", at_least=0)
    gamma_beta_ratio: float | None = number(None, "γ/β, in place of γ", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma_beta_ratio is None:
            return
        (default,) = (field.default for field in fields(self) if field.name == "gamma")
        if self.gamma != default:
            given = f"gamma={self.gamma} and gamma_beta_ratio={self.gamma_beta_ratio}"
            raise ValueError(f"{self.name}: give one of the two, got {given}")
        object.__setattr__(self, "gamma", self.gamma_beta_ratio * self.beta)
        object.__setattr__(self, "gamma_beta_ratio", None)

    def terms(self, pairs: PairLogps) -> ObjectiveTerms:
        chosen = self.beta * mean_logp(pairs.chosen, pairs.chosen_mask)
        rejected = self.beta * mean_logp(pairs.rejected, pairs.rejected_mask)
        margin = chosen - rejected
        return ObjectiveTerms.of(
            {"preference": preference_nll(margin - self.gamma)},
            rewards_chosen=chosen,
            rewards_rejected=rejected,
            satisfied=margin >= self.gamma,
        )
