"""SFT on the chosen completions of preference pairs: the baseline every preference loss must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from holdfast.objectives.pairs import (
    ObjectiveTerms,
    PairLogps,
    PairObjective,
    chosen_nll,
    mean_logp,
    nll_reduction,
)


@dataclass(frozen=True)
class SftOnChosen(PairObjective):
    """SFT on the chosen: their NLL alone; the rejected are only measured.

    Parts: "nll". Rewards: l̄ of each side. Satisfied: a positive reward margin.
    """

    name: ClassVar[str] = "sft"
    paper: ClassVar[str] = "maximum likelihood on the chosen completions"
    formula: ClassVar[str] = "NLL_w"
    notes: ClassVar[tuple[str, ...]] = (
        "Where the chosen answers are simply right this can beat every preference loss: keep it in every "
        "comparison.",
        "Each completion counts once; supervised training as such pools all target tokens instead.",
    )

    nll_reduction: str = nll_reduction()

    def terms(self, pairs: PairLogps) -> ObjectiveTerms:
        return ObjectiveTerms.of(
            {"nll": chosen_nll(pairs, self.nll_reduction)},
            rewards_chosen=mean_logp(pairs.chosen, pairs.chosen_mask),
            rewards_rejected=mean_logp(pairs.rejected, pairs.rejected_mask),
        )
