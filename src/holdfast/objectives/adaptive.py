"""The α family with α following the model's measured capability during training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from torch import Tensor

from holdfast.objectives.hyperparameters import number
from holdfast.objectives.numerics import one_minus_exp
from holdfast.objectives.token import BEYOND_LOG_LIKELIHOOD, SMALLEST_ALPHA, FAlpha, TokenObjective

Capability = TypeVar("Capability", float, Tensor)


@dataclass(frozen=True)
class Adaptive(TokenObjective):
    """The α family, α following capability: NLL where the model knows nothing, near 1 − p where it knows.

    f = (1 − p^α)/α with α = lowest + (highest − lowest)(3t² − 2t³), t = (c − weak)/(strong − weak) held to [0, 1]; c is
    the capability: the mean probability of the target tokens that carry information, or that of the other ones where
    it is less. A trainer measures it over the steps before and calls `at`; called alone, the objective uses the
    `capability` it was given.
    """

    name: ClassVar[str] = "adaptive"
    paper: ClassVar[str] = BEYOND_LOG_LIKELIHOOD
    formula: ClassVar[str] = (
        "(1 − p^α)/α,  α = lowest + (highest − lowest)(3t² − 2t³),  t = (c − weak)/(strong − weak) in [0, 1]"
    )
    notes: ClassVar[tuple[str, ...]] = (
        "The map is this package's own, tuned on three seeds of the tiny world (docs/continuum.md); the paper leaves "
        "adapting to capability open.",
        "Every step has its own α: losses of different steps are not comparable. Compare mean_logps/target.",
    )

    capability: float = number(0.5, "c before anything is measured: the first step's", at_least=0, at_most=1)
    weak: float = number(0.5, "c up to which α is 0 (NLL)", at_least=0, below=1)
    strong: float = number(0.95, "c from which α is the highest", above=0, at_most=1)
    lowest: float = number(0.0, "α of a weak model; 0 is NLL", at_least=0)
    highest: float = number(0.8, "α of a strong model; 1 is 1 − p", above=0)
    half_life: float = number(30.0, "global batches after which what was measured counts half", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weak >= self.strong:
            raise ValueError(
                f"adaptive: weak must be < strong, got weak={self.weak} and strong={self.strong}"
            )
        if self.lowest > self.highest:
            raise ValueError(
                f"adaptive: lowest must be <= highest, got lowest={self.lowest} and highest={self.highest}"
            )

    @property
    def alpha(self) -> float:
        """α at the capability given."""
        return self.alpha_at(self.capability)

    def alpha_at(self, capability: Capability) -> Capability:
        """The map from capability to α: smooth, never falling."""
        t = (capability - self.weak) / (self.strong - self.weak)
        t = t.clamp(0, 1) if isinstance(t, Tensor) else min(max(t, 0.0), 1.0)
        return self.lowest + (self.highest - self.lowest) * t * t * (3 - 2 * t)

    def at(self, capability: float | Tensor) -> TokenObjective:
        """The objective at a capability; a tensor's, (), without reading it from its device."""
        if isinstance(capability, Tensor):
            return _Measured(capability.detach(), self.alpha_at(capability.detach()))
        return replace(self, capability=capability)

    def state(self) -> Mapping[str, float | Tensor]:
        return {"capability": self.capability, "alpha": self.alpha}

    def loss(self, logps: Tensor) -> Tensor:
        return FAlpha(alpha=self.alpha).loss(logps)

    def weight(self, p: Tensor) -> Tensor:
        return FAlpha(alpha=self.alpha).weight(p)


@dataclass(frozen=True, eq=False)
class _Measured(TokenObjective):
    """f_α with α on a device, (): what a trainer uses between two measurements."""

    name: ClassVar[str] = Adaptive.name
    paper: ClassVar[str] = Adaptive.paper
    formula: ClassVar[str] = Adaptive.formula

    capability: Tensor
    alpha: Tensor

    def __post_init__(self) -> None:
        """Nothing to check: both come from an `Adaptive`."""

    def state(self) -> Mapping[str, float | Tensor]:
        return {"capability": self.capability, "alpha": self.alpha}

    def loss(self, logps: Tensor) -> Tensor:
        alpha = self.alpha.clamp(min=SMALLEST_ALPHA)  # which is NLL, to the last bit
        return one_minus_exp(alpha * logps) / alpha

    def weight(self, p: Tensor) -> Tensor:
        return p.pow(self.alpha) * (1 - p)
