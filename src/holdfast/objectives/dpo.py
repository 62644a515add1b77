"""DPO, with its two treatments of noisy labels (arXiv 2305.18290; robust form 2403.00409)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from holdfast.objectives.hyperparameters import choice, number
from holdfast.objectives.pairs import ObjectiveTerms, PairLogps, PairObjective, reference_log_ratios


def preference_nll(margin: Tensor) -> Tensor:
    """−log σ(margin): the Bradley-Terry NLL of "chosen beats rejected", finite for any finite margin."""
    return -F.logsigmoid(margin)


@dataclass(frozen=True)
class Dpo(PairObjective):
    """DPO: the Bradley-Terry NLL of the log-ratios to a frozen reference.

        −log σ(h),  h = β[(S_w − R_w) − (S_l − R_l)]     (2305.18290, eq. 7)

    With label smoothing ε, the assumed share of flipped labels, by variant:

        sigmoid   −(1−ε) log σ(h) − ε log σ(−h)                  cDPO, a note by E. Mitchell, 2023
        robust    [−(1−ε) log σ(h) + ε log σ(−h)] / (1 − 2ε)     2403.00409: unbiased for the clean loss

    Parts: "preference". Rewards: β(S − R). Satisfied: a positive reward margin.
    """

    name: ClassVar[str] = "dpo"
    paper: ClassVar[str] = (
        "arXiv:2305.18290, Direct Preference Optimization: Your Language Model is Secretly a Reward Model"
    )
    formula: ClassVar[str] = "−log σ(β[(S_w − R_w) − (S_l − R_l)])"
    needs_reference: ClassVar[bool] = True
    notes: ClassVar[tuple[str, ...]] = (
        "Log-probs are summed over the completion, so longer completions weigh more.",
        "TRL's sigmoid loss ignores label_smoothing (its robust loss reads it); here both variants read it.",
        "The robust variant is unbounded below as h grows; cDPO is not.",
    )

    beta: float = number(0.1, "β, strength of the tie to the reference", above=0)
    label_smoothing: float = number(0.0, "ε, the assumed share of flipped labels", at_least=0, below=0.5)
    variant: str = choice(
        "sigmoid", "how ε enters: sigmoid (cDPO) or robust (unbiased)", among=("sigmoid", "robust")
    )

    def terms(self, pairs: PairLogps) -> ObjectiveTerms:
        log_ratio_chosen, log_ratio_rejected = reference_log_ratios(pairs)
        chosen, rejected = self.beta * log_ratio_chosen, self.beta * log_ratio_rejected
        return ObjectiveTerms.of(
            {"preference": self._smoothed(chosen - rejected)},
            rewards_chosen=chosen,
            rewards_rejected=rejected,
        )

    def _smoothed(self, margin: Tensor) -> Tensor:
        kept = preference_nll(margin)
        if self.label_smoothing == 0:
            return kept
        flipped = preference_nll(-margin)
        noise = self.label_smoothing
        if self.variant == "robust":
            return ((1 - noise) * kept - noise * flipped) / (1 - 2 * noise)
        return (1 - noise) * kept + noise * flipped
