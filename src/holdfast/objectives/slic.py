"""SLiC-HF: a hinge on summed log-probs plus the chosen NLL (arXiv 2305.10425)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

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


@dataclass(frozen=True)
class Slic(PairObjective):
    """SLiC-HF: a hinge on the summed log-probs plus the chosen NLL.

        max(0, δ − (S_w − S_l)) + λ NLL_w     (2305.10425)

    Parts: "margin", "nll". Rewards: S of each side. Satisfied: S_w − S_l ≥ δ.
    """

    name: ClassVar[str] = "slic"
    paper: ClassVar[str] = "arXiv:2305.10425, SLiC-HF: Sequence Likelihood Calibration with Human Feedback"
    formula: ClassVar[str] = "max(0, δ − (S_w − S_l)) + λ·NLL_w"
    notes: ClassVar[tuple[str, ...]] = (
        "The paper regularises towards the SFT data's target; here, as usual on preference pairs, towards "
        "the chosen completion.",
        "The defaults δ = 1 and λ = 1 are this package's: tune both.",
    )

    margin: float = number(1.0, "δ, margin in nats", at_least=0)
    nll_weight: float = number(1.0, "λ, weight of the chosen completion's NLL", at_least=0)
    nll_reduction: str = nll_reduction()

    def terms(self, pairs: PairLogps) -> ObjectiveTerms:
        chosen = sum_logp(pairs.chosen, pairs.chosen_mask)
        rejected = sum_logp(pairs.rejected, pairs.rejected_mask)
        gap = chosen - rejected
        parts = {
            "margin": F.relu(self.margin - gap),
            "nll": weighted(self.nll_weight, chosen_nll(pairs, self.nll_reduction)),
        }
        return ObjectiveTerms.of(
            parts, rewards_chosen=chosen, rewards_rejected=rejected, satisfied=gap >= self.margin
        )
