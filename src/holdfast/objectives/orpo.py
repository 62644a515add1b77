"""ORPO: the chosen NLL plus a log odds ratio (arXiv 2403.07691)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from holdfast.objectives.dpo import preference_nll
from holdfast.objectives.hyperparameters import number
from holdfast.objectives.numerics import below_zero, log_one_minus_exp
from holdfast.objectives.pairs import ObjectiveTerms, PairLogps, PairObjective, mean_logp, weighted


def log_odds(mean_logps: Tensor) -> Tensor:
    """log(P / (1 − P)) of P = exp(l̄), nats; P is held one rounding step below 1 to keep the odds finite."""
    held = below_zero(mean_logps)
    return held - log_one_minus_exp(held)


@dataclass(frozen=True)
class Orpo(PairObjective):
    """ORPO: the chosen NLL plus the NLL of the log odds ratio.

        −l̄_w − λ log σ(log odds_w − log odds_l),  odds = P/(1 − P) of P = exp(l̄)     (2403.07691, eqs. 4-7)

    Parts: "nll", "odds_ratio". Rewards: log odds of each side. Satisfied: a positive reward margin.
    """

    name: ClassVar[str] = "orpo"
    paper: ClassVar[str] = (
        "arXiv:2403.07691, ORPO: Monolithic Preference Optimization without Reference Model"
    )
    formula: ClassVar[str] = "−l̄_w − λ·log σ(log odds_w − log odds_l),  odds = exp(l̄)/(1 − exp(l̄))"
    notes: ClassVar[tuple[str, ...]] = (
        "TRL's ORPO trainer takes the NLL over prompt and completion and pools it over the micro-batch's "
        "tokens; here it is the completion's own mean.",
        "A completion of P = 1 within the dtype's rounding has odds of about 1/eps and no gradient from "
        "the odds.",
    )

    weight: float = number(0.1, "λ, weight of the odds-ratio term", at_least=0)

    def terms(self, pairs: PairLogps) -> ObjectiveTerms:
        mean_chosen = mean_logp(pairs.chosen, pairs.chosen_mask)
        mean_rejected = mean_logp(pairs.rejected, pairs.rejected_mask)
        chosen, rejected = log_odds(mean_chosen), log_odds(mean_rejected)
        parts = {"nll": -mean_chosen, "odds_ratio": weighted(self.weight, preference_nll(chosen - rejected))}
        return ObjectiveTerms.of(parts, rewards_chosen=chosen, rewards_rejected=rejected)
