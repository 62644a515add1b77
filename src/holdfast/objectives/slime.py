"""SLIME: an anchor, a stabilizer and a dual margin (arXiv 2602.02383 v2, eqs. 5-10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.objectives.hyperparameters import choice, number, switch
from holdfast.objectives.numerics import softplus
from holdfast.objectives.pairs import ObjectiveTerms, PairLogps, PairObjective, masked, mean_logp, weighted


def anchor(mean_chosen: Tensor) -> Tensor:
    """Eq. 6 without its weight: −l̄_w, the chosen completion's NLL per token. (pairs,) -> (pairs,)."""
    return -mean_chosen


def token_penalty(logps: Tensor, threshold: float, exponent: float) -> Tensor:
    """Inside the expectation of eq. 7: softplus(−l_t − δ)^p. Any shape; near 0 while l_t is well above −δ."""
    return softplus(-logps - threshold).pow(exponent)


def hard_hinge(gap: Tensor, hard_margin: float) -> Tensor:
    """First factor of the dual margin (eqs. 8-10): max(0, m_h − Δ), with a zero gradient from Δ = m_h on."""
    return F.relu(hard_margin - gap)


def soft_gate(gap: Tensor, soft_margin: float, sharpness: float) -> Tensor:
    """Second factor of the dual margin (eqs. 8-10): σ(−κ(Δ − m_s))."""
    return torch.sigmoid(-sharpness * (gap - soft_margin))


@dataclass(frozen=True)
class Slime(PairObjective):
    """SLIME: raise the chosen, keep rejected tokens from collapsing, stop at a margin.

        −λ_w l̄_w + λ_l E_{t∈y_l}[softplus(−l_t − δ)^p] + λ_d max(0, m_h − Δ) σ(−κ(Δ − m_s))     (eqs. 5-10)

    The defaults are the paper's. Its ablations are settings: `anchor_weight=0` (no chosen term),
    `stabilizer_weight=0` (no rejected term), `use_soft_margin=False` (hinge alone), `use_hard_margin=False`
    (gate alone); with both margins off there is no margin term.

    Parts: "anchor", "stabilizer", "margin". Rewards: l̄ of each side. Satisfied: Δ ≥ m_h, or m_s where the
    hard margin is off.
    """

    name: ClassVar[str] = "slime"
    paper: ClassVar[str] = (
        "arXiv:2602.02383, SLIME: Stabilized Likelihood Implicit Margin Enforcement for Preference "
        "Optimization"
    )
    formula: ClassVar[str] = (
        "−λ_w·l̄_w + λ_l·mean_t softplus(−l_t − δ)^p + λ_d·max(0, m_h − Δ)·σ(−κ(Δ − m_s)),  Δ = l̄_w − l̄_l"
    )
    notes: ClassVar[tuple[str, ...]] = (
        "λ_l is 0.1 in the paper and 0.0005 in the public code, whose configuration defaults also have δ "
        "0.5 and λ_w 0.8 (preset trl-slime-config) while its training script sets δ 1.25 and λ_w 0.1 "
        "(preset trl-slime-train); p and κ are fixed at 2.5 there. The defaults here are the paper's.",
        "The mean over rejected tokens: the public code pools all tokens of a micro-batch, so the "
        "gradient depends on how the batch is cut. stabilizer_reduction=token pools over the global batch "
        "instead; =sequence averages each completion first.",
        "The public code masks tokens by log-prob != 0, which drops a token of p = 1 from the means; here "
        "the real completion mask decides.",
        "The public code inherits a DPO trainer and runs a reference forward whose result is unused; here no "
        "reference is ever loaded.",
        "The paper's LoRA table prints α/r = 0.5 beside r = 64, α = 128 (a ratio of 2; the code uses "
        "these r and α), and dropout 0.0 where the code has 0.05, inert there.",
        "The paper's SimPO baseline is CPO-SimPO (SimPO plus 1.0 times the chosen NLL): compare with "
        "cpo_simpo.",
    )
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "paper": {},
        "trl-slime-train": {"threshold": 1.25, "anchor_weight": 0.1, "stabilizer_weight": 0.0005},
        "trl-slime-config": {"threshold": 0.5, "anchor_weight": 0.8, "stabilizer_weight": 0.0005},
    }

    anchor_weight: float = number(0.1, "λ_w, weight of the anchor on the chosen completion", at_least=0)
    stabilizer_weight: float = number(0.1, "λ_l, weight of the stabilizer on rejected tokens", at_least=0)
    margin_weight: float = number(1.0, "λ_d, weight of the dual margin", at_least=0)
    threshold: float = number(
        1.25, "δ in nats: rejected tokens are penalised from about l_t < −δ", at_least=0
    )
    exponent: float = number(2.5, "p, exponent of the penalty", at_least=1)
    hard_margin: float = number(1.5, "m_h in nats per token: from Δ = m_h on the margin term is zero")
    soft_margin: float = number(1.0, "m_s in nats per token: the gate is one half at Δ = m_s")
    sharpness: float = number(2.5, "κ, steepness of the gate", above=0)
    use_hard_margin: bool = switch(True, "keep the factor max(0, m_h − Δ)")
    use_soft_margin: bool = switch(True, "keep the factor σ(−κ(Δ − m_s))")
    stabilizer_reduction: str = choice(
        "token",
        "mean_t over all rejected tokens of the global batch (token) or per completion (sequence)",
        among=("token", "sequence"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        margin_weight = self.margin_weight if self.use_hard_margin or self.use_soft_margin else 0.0
        if not (self.anchor_weight or self.stabilizer_weight or margin_weight):
            raise ValueError(
                "slime: every term is switched off; give anchor_weight, stabilizer_weight or margin_weight"
            )

    def terms(self, pairs: PairLogps) -> ObjectiveTerms:
        mean_chosen = mean_logp(pairs.chosen, pairs.chosen_mask)
        mean_rejected = mean_logp(pairs.rejected, pairs.rejected_mask)
        gap = mean_chosen - mean_rejected
        parts = {
            "anchor": weighted(self.anchor_weight, anchor(mean_chosen)),
            "stabilizer": weighted(self.stabilizer_weight, self._stabilizer(pairs)),
            "margin": weighted(self.margin_weight, self._margin(gap)),
        }
        return ObjectiveTerms.of(
            parts, rewards_chosen=mean_chosen, rewards_rejected=mean_rejected, satisfied=self._satisfied(gap)
        )

    def _stabilizer(self, pairs: PairLogps) -> Tensor:
        """(pairs,): each completion's penalties over a token count.

        With "token" every completion is divided by the *same* count, the rejected tokens per pair of the
        global batch: the mean over its pairs is then the mean over its tokens, however the batch is cut.
        """
        mask = pairs.rejected_mask
        penalty = token_penalty(masked(pairs.rejected, mask), self.threshold, self.exponent)
        total = masked(penalty, mask).sum(-1)
        if self.stabilizer_reduction == "sequence":
            return total / mask.sum(-1)
        if pairs.rejected_tokens_per_pair is None:
            return total * mask.shape[0] / mask.sum()  # total first: int / int would be float32
        return total / pairs.rejected_tokens_per_pair

    def _margin(self, gap: Tensor) -> Tensor:
        """(pairs,): the factors that are switched on, multiplied; zero when neither is."""
        if not self.use_hard_margin and not self.use_soft_margin:
            return torch.zeros_like(gap)
        value = torch.ones_like(gap)
        if self.use_hard_margin:
            value = value * hard_hinge(gap, self.hard_margin)
        if self.use_soft_margin:
            value = value * soft_gate(gap, self.soft_margin, self.sharpness)
        return value

    def _satisfied(self, gap: Tensor) -> Tensor:
        if self.use_hard_margin:
            return gap >= self.hard_margin
        return gap >= self.soft_margin if self.use_soft_margin else gap > 0
