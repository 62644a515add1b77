"""IPO: regress the log-ratio margin onto a fixed target (arXiv 2310.12036)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from holdfast.objectives.hyperparameters import number, switch
from holdfast.objectives.pairs import ObjectiveTerms, PairLogps, PairObjective, reference_log_ratios


@dataclass(frozen=True)
class Ipo(PairObjective):
    """IPO: regression of the log-ratio margin onto 1/(2β).

        ([(S_w − R_w) − (S_l − R_l)] − 1/(2β))²     (2310.12036, eq. 17; β is its τ)

    `length_normalized=True` divides each side's log-ratio by the number of its completion tokens.

    Parts: "preference". Rewards: S − R, or that per token. Satisfied: the margin has reached 1/(2β).
    """

    name: ClassVar[str] = "ipo"
    paper: ClassVar[str] = (
        "arXiv:2310.12036, A General Theoretical Paradigm to Understand Learning from Human Preferences"
    )
    formula: ClassVar[str] = "([(S_w − R_w) − (S_l − R_l)] − 1/(2β))²"
    needs_reference: ClassVar[bool] = True
    notes: ClassVar[tuple[str, ...]] = (
        "The paper's text sums log-probs over the completion, the default here. TRL divides each side by "
        "its length and reports the authors' word that the published numbers did so: set "
        "length_normalized for like against like.",
        "The loss is a square: a pair far beyond the target is pulled back, unlike with a hinge.",
    )

    beta: float = number(0.1, "β (the paper's τ); the target margin is 1/(2β) nats", above=0)
    length_normalized: bool = switch(False, "divide each side's log-ratio by its own length")

    def terms(self, pairs: PairLogps) -> ObjectiveTerms:
        chosen, rejected = reference_log_ratios(pairs)
        if self.length_normalized:
            chosen = chosen / pairs.chosen_mask.sum(-1)
            rejected = rejected / pairs.rejected_mask.sum(-1)
        margin = chosen - rejected
        target = 1 / (2 * self.beta)
        return ObjectiveTerms.of(
            {"preference": (margin - target).square()},
            rewards_chosen=chosen,
            rewards_rejected=rejected,
            satisfied=margin >= target,
        )
