"""A token objective on the tokens whose probability lies in a band (arXiv 2510.00526)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from holdfast.objectives.hyperparameters import choice, described, number
from holdfast.objectives.numerics import at_least_float32
from holdfast.objectives.token import BEYOND_LOG_LIKELIHOOD, TokenObjective


def resolve_base(label: str, value: object) -> TokenObjective:
    """The token objective that a name, a mapping spec or an instance stands for."""
    from holdfast.objectives.registry import resolve_objective  # the registry lists Threshold itself

    if not isinstance(value, str | Mapping | TokenObjective):
        raise ValueError(f"{label} must be a token objective, its name or its spec, got {value!r}")
    base = resolve_objective(value)
    if not isinstance(base, TokenObjective):
        raise ValueError(f"{label} must be a token objective, got {base.name!r}, which works on pairs")
    return base


@dataclass(frozen=True)
class Threshold(TokenObjective):
    """Threshold: any f, on the tokens with low ≤ p ≤ high alone.

    Elsewhere f and W are 0. p is the current probability, without gradient: a token that leaves the band
    stops counting, and is not pushed across its edge. The paper's main variant keeps p ≥ 0.2. A bound
    may be a quantile of the base model's target probabilities on the training set: `with_percentiles`
    replaces it by the probability there, and until then no token can be judged (ValueError).
    """

    name: ClassVar[str] = "threshold"
    paper: ClassVar[str] = BEYOND_LOG_LIKELIHOOD
    formula: ClassVar[str] = "f(p) where low ≤ p ≤ high, else 0"
    notes: ClassVar[tuple[str, ...]] = (
        "The paper's code divides by the kept tokens (normalize=kept, the default) of one micro-batch; "
        "normalize=all divides by every target token and so also shrinks the step.",
        "A NaN log-prob counts as kept: a broken forward must stay visible.",
        "Quantiles are measured once, before the first step, and kept when a run goes on.",
    )

    base: TokenObjective | str | Mapping[str, object] = field(
        default="nll",
        metadata=described("the objective f: a name, a spec or an instance (which is kept)", resolve_base),
    )
    low: float = number(0.0, "least probability that counts", at_least=0, at_most=1)
    high: float = number(1.0, "greatest probability that counts", at_least=0, at_most=1)
    low_quantile: float | None = number(
        None, "in place of low: the share of the base model's target tokens below it", at_least=0, below=1
    )
    high_quantile: float | None = number(
        None, "in place of high: the share of the base model's target tokens below it", above=0, at_most=1
    )
    normalize: str = choice("kept", "divide by the kept tokens or by all", among=("kept", "all"))

    def __post_init__(self) -> None:
        super().__post_init__()
        for bound, unbounded in (("low", 0.0), ("high", 1.0)):
            if getattr(self, f"{bound}_quantile") is not None and getattr(self, bound) != unbounded:
                raise ValueError(f"threshold: give {bound} or {bound}_quantile, not both")
        low, high = (getattr(self, f"{bound}_quantile") for bound in ("low", "high"))
        if low is not None and high is not None and low >= high:
            raise ValueError(f"threshold: low_quantile must be < high_quantile, got {low} and {high}")
        if self.low > self.high:
            raise ValueError(f"threshold: low must be <= high, got low={self.low} and high={self.high}")

    def loss(self, logps: Tensor) -> Tensor:
        kept = self.kept(logps)
        # Tokens outside the band are computed as p = 1, where every f and its gradient are finite.
        return torch.where(kept, self._f.loss(torch.where(kept, logps, 0.0)), 0.0)

    def weight(self, p: Tensor) -> Tensor:
        return torch.where(self._in_band(p), self._f.weight(p), 0.0)

    def kept(self, logps: Tensor) -> Tensor:
        p = at_least_float32(logps).detach().clamp(max=0).exp()  # rounding may leave log p just above 0
        return self._in_band(p) & self._f.kept(logps)

    @property
    def normalization(self) -> Literal["kept", "all"]:
        return "all" if self.normalize == "all" else "kept"

    @property
    def half_life(self) -> float | None:
        return self._f.half_life

    def at(self, capability: float | Tensor) -> TokenObjective:
        return self if self.half_life is None else replace(self, base=self._f.at(capability))

    def state(self) -> Mapping[str, float | Tensor]:
        return self._f.state()

    @property
    def needs_percentiles(self) -> bool:
        return self._unmeasured or self._f.needs_percentiles

    def with_percentiles(self, probability_at: Callable[[float], float]) -> TokenObjective:
        return replace(
            self,
            base=self._f.with_percentiles(probability_at),
            low=self.low if self.low_quantile is None else probability_at(self.low_quantile),
            high=self.high if self.high_quantile is None else probability_at(self.high_quantile),
            low_quantile=None,
            high_quantile=None,
        )

    @property
    def _f(self) -> TokenObjective:
        assert isinstance(self.base, TokenObjective)  # resolve_base has run
        return self.base

    @property
    def _unmeasured(self) -> bool:
        return self.low_quantile is not None or self.high_quantile is not None

    def _in_band(self, p: Tensor) -> Tensor:
        if self._unmeasured:
            raise ValueError(
                "threshold: its bounds are quantiles of the base model's probabilities, which have not been "
                "measured: call with_percentiles first (the trainer does)"
            )
        return ~((p < self.low) | (p > self.high))
