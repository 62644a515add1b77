"""Token objectives for supervised training: a loss f(p) of the target token's probability p.

Shapes are free: `objective(logps)` maps log-probs l = log p, nats, to f(p) token by token, in at least
float32. The caller masks, sums, and divides by the number of target tokens or of kept ones
(`normalization`).

Through a softmax every f reaches the logits as ∂f/∂z_i = −s(p)(δ_iy − p_i) with s(p) = −f'(p) p (arXiv
2510.00526, Lemma 3.1); on the right token's logit that is the weight W_f(p) = −f'(p) p (1 − p) =
`gradient_weight(p)`. A concave f has its greatest weight at p in [½, 1] and so trusts what the model
already believes, a convex one in [0, ½] (Proposition 3.2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from holdfast.objectives.base import Kind, Objective
from holdfast.objectives.hyperparameters import number
from holdfast.objectives.numerics import at_least_float32, below_zero, log_one_minus_exp, one_minus_exp

BEYOND_LOG_LIKELIHOOD = (
    "arXiv:2510.00526, Beyond Log Likelihood: Probability-Based Objectives for Supervised Fine-Tuning "
    "across the Model Capability Continuum"
)

# Below this α, (1 − p^α)/α and −log p agree to the last bit of a float64 for every |log p| < 10⁴.
SMALLEST_ALPHA = 1e-20


@dataclass(frozen=True)
class TokenObjective(Objective, ABC):
    """An objective on single tokens: `objective(logps) -> f(p)`, same shape.

    Raises ValueError for log-probs that are not floating point. At l = −∞ (a target the model has ruled
    out) f is whatever its limit is: finite for bounded f, infinite for the likelihoods.
    """

    kind: ClassVar[Kind] = "token"

    def __call__(self, logps: Tensor) -> Tensor:
        return self.loss(at_least_float32(logps))

    @abstractmethod
    def loss(self, logps: Tensor) -> Tensor:
        """f(p) of log-probs in float32 or float64."""

    @abstractmethod
    def weight(self, p: Tensor) -> Tensor:
        """W_f(p) of probabilities in float32 or float64."""

    def gradient_weight(self, p: Tensor) -> Tensor:
        """W_f(p) = −f'(p) p (1 − p): how hard a token of probability p pulls on its own logit. Same shape."""
        return self.weight(at_least_float32(p))

    def kept(self, logps: Tensor) -> Tensor:
        """Which tokens count, bool, same shape; all of them unless the objective selects."""
        return torch.ones_like(logps, dtype=torch.bool)

    @property
    def normalization(self) -> Literal["kept", "all"]:
        """What the caller divides the summed loss by: the number of kept tokens or of all target tokens."""
        return "all"

    @property
    def half_life(self) -> float | None:
        """None unless the objective follows the model's capability during training.

        Then: in how many global batches what was measured comes to count half.
        """
        return None

    def at(self, capability: float | Tensor) -> TokenObjective:
        """The objective at a measured capability in [0, 1]; itself unless it follows."""
        return self

    @property
    def needs_percentiles(self) -> bool:
        """Whether it names quantiles of the base model's target probabilities, which `with_percentiles` gives it."""
        return False

    def with_percentiles(self, probability_at: Callable[[float], float]) -> TokenObjective:
        """The objective with the probability at each quantile that it names; itself where it names none.

        Args:
            probability_at: a share in [0, 1] -> the probability below which that share of the tokens lies.
        """
        return self

    def state(self) -> Mapping[str, float | Tensor]:
        """What a log should hold of an objective that follows: its capability and what it made of it."""
        return {}


@dataclass(frozen=True)
class Nll(TokenObjective):
    """NLL: the objective of ordinary supervised fine-tuning.

    f = −log p, W = 1 − p.
    """

    name: ClassVar[str] = "nll"
    paper: ClassVar[str] = "maximum likelihood"
    formula: ClassVar[str] = "−log p"

    def loss(self, logps: Tensor) -> Tensor:
        return -logps

    def weight(self, p: Tensor) -> Tensor:
        return 1 - p


@dataclass(frozen=True)
class FAlpha(TokenObjective):
    """The α family: NLL at α = 0, 1 − p at α = 1, trust in the prior beyond.

    f = (1 − p^α)/α, W = p^α (1 − p), greatest at p = α/(α + 1)     (2510.00526). Computed from l = log p as
    −expm1(αl)/α, which does not cancel for small α; α = 0 is −l exactly.
    """

    name: ClassVar[str] = "f_alpha"
    paper: ClassVar[str] = BEYOND_LOG_LIKELIHOOD
    formula: ClassVar[str] = "(1 − p^α)/α"
    notes: ClassVar[tuple[str, ...]] = (
        "The public code divides by zero at α = 0 and, under sequence parallelism, trains NLL whatever is "
        "named.",
    )

    alpha: float = number(1.0, "α: 0 is NLL, 1 is 1 − p; concave (prior-leaning) from 1 on", at_least=0)

    def loss(self, logps: Tensor) -> Tensor:
        if self.alpha < SMALLEST_ALPHA:
            return -logps
        return one_minus_exp(self.alpha * logps) / self.alpha

    def weight(self, p: Tensor) -> Tensor:
        return p.pow(self.alpha) * (1 - p)


@dataclass(frozen=True)
class Probability(TokenObjective):
    """The chance of sampling another token; `f_alpha` at α = 1.

    f = 1 − p, W = p (1 − p)     (2510.00526).
    """

    name: ClassVar[str] = "p"
    paper: ClassVar[str] = BEYOND_LOG_LIKELIHOOD
    formula: ClassVar[str] = "1 − p"
    notes: ClassVar[tuple[str, ...]] = ("The paper writes it −p; the constant makes the least loss 0.",)

    def loss(self, logps: Tensor) -> Tensor:
        return one_minus_exp(logps)

    def weight(self, p: Tensor) -> Tensor:
        return p * (1 - p)


@dataclass(frozen=True)
class LogOneMinusP(TokenObjective):
    """The log-probability of sampling another token, unbounded below as p → 1.

    f = log(1 − p), W = p     (2510.00526).
    """

    name: ClassVar[str] = "log_one_minus_p"
    paper: ClassVar[str] = BEYOND_LOG_LIKELIHOOD
    formula: ClassVar[str] = "log(1 − p)"
    notes: ClassVar[tuple[str, ...]] = (
        "log p is held one rounding step (the dtype's eps) below 0: f is at least log eps, −15.9 in "
        "float32, and a token of p = 1 has no gradient.",
        "Values are ≤ 0 and fall as the model learns; the loss curve is negative.",
    )

    def loss(self, logps: Tensor) -> Tensor:
        return log_one_minus_exp(below_zero(logps))

    def weight(self, p: Tensor) -> Tensor:
        return p


@dataclass(frozen=True)
class Focal(TokenObjective):
    """Focal loss: NLL that spares what is already known; γ = 0 is NLL.

    f = −(1 − p)^γ log p, W = (1 − p)^γ ((1 − p) − γ p log p)     (1708.02002, eq. 4).
    """

    name: ClassVar[str] = "focal"
    paper: ClassVar[str] = "arXiv:1708.02002, Focal Loss for Dense Object Detection"
    formula: ClassVar[str] = "−(1 − p)^γ·log p"

    gamma: float = number(2.0, "γ: how strongly confident tokens are spared; 0 is NLL", at_least=0)

    def loss(self, logps: Tensor) -> Tensor:
        # Held above 0 because d q^γ/dq is infinite at q = 0 for γ < 1, and ∞ · log 1 would be NaN.
        q = one_minus_exp(logps).clamp(min=torch.finfo(logps.dtype).tiny)
        return -q.pow(self.gamma) * logps

    def weight(self, p: Tensor) -> Tensor:
        return (1 - p).pow(self.gamma) * ((1 - p) - self.gamma * torch.xlogy(p, p))


@dataclass(frozen=True)
class HuberP(TokenObjective):
    """Huber's loss of the error e = 1 − p: squared near p = 1, linear far from it.

    f = e²/2 for e ≤ δ, else δ(e − δ/2); W = p (1 − p) min(1 − p, δ).
    """

    name: ClassVar[str] = "huber_p"
    paper: ClassVar[str] = BEYOND_LOG_LIKELIHOOD
    formula: ClassVar[str] = "e²/2 for e ≤ δ, else δ(e − δ/2),  e = 1 − p"
    notes: ClassVar[tuple[str, ...]] = ("δ = 0.5 is this package's default. From δ = 1 on it is (1 − p)²/2.",)

    delta: float = number(0.5, "δ: errors 1 − p beyond it count linearly", above=0)

    def loss(self, logps: Tensor) -> Tensor:
        error = one_minus_exp(logps)
        return torch.where(error <= self.delta, error.square() / 2, self.delta * (error - self.delta / 2))

    def weight(self, p: Tensor) -> Tensor:
        return p * (1 - p) * (1 - p).clamp(max=self.delta)


@dataclass(frozen=True)
class Dft(TokenObjective):
    """Dynamic fine-tuning: NLL rescaled by p, which gives the gradient of 1 − p.

    f = −sg(p) log p with sg a stopped gradient, W = p (1 − p)     (2508.05629).
    """

    name: ClassVar[str] = "dft"
    paper: ClassVar[str] = (
        "arXiv:2508.05629, On the Generalization of SFT: A Reinforcement Learning Perspective with Reward "
        "Rectification"
    )
    formula: ClassVar[str] = "−sg(p)·log p"
    notes: ClassVar[tuple[str, ...]] = (
        "As a number the loss is p·log(1/p), which is small both for known and for hopeless tokens: do "
        "not read progress off it.",
    )

    def loss(self, logps: Tensor) -> Tensor:
        # The clamp only meets l = −∞, where 0 · ∞ would be NaN and the limit is 0.
        return -logps.detach().exp() * logps.clamp(min=torch.finfo(logps.dtype).min)

    def weight(self, p: Tensor) -> Tensor:
        return p * (1 - p)
