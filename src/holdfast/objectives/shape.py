"""The shape of a token objective: which way f(p) bends, and where its gradient weight W_f(p) is greatest.

A concave f trusts what the model already believes (prior-leaning: W_f is greatest in [½, 1]), a convex one
distrusts it (prior-averse: [0, ½]); arXiv 2510.00526, Proposition 3.2. Both are found from the objective's own
closed forms in float64, never from its name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from holdfast.objectives.token import TokenObjective

Leaning = Literal["prior-leaning", "prior-averse", "neither"]

ZOOMS, ZOOM_POINTS = 8, 201  # a hundredfold each: from a grid's cell down to neighbouring float64
BISECTIONS = 200
# Slopes nearer than this, relative to themselves, are equal: (1 − p) carries 10⁻¹⁰ of rounding at p = 1 − 10⁻⁶.
SAME_SLOPE = 1e-9


@dataclass(frozen=True)
class Shape:
    """What `shape_of` found.

    Attributes:
        leaning: of f on (0, 1). A line is both concave and convex, and counts as prior-leaning, as α ≥ 1 does in
            the paper; a threshold's jump is neither.
        linear: whether f is a line where it is kept.
        kept_leaning: of f on the kept tokens alone; equals `leaning` where all are kept.
        peak: the p in [0, 1] at which W_f is greatest.
        peak_weight: W_f there.
    """

    leaning: Leaning
    linear: bool
    kept_leaning: Leaning
    peak: float
    peak_weight: float


def shape_of(objective: TokenObjective) -> Shape:
    """Leaning and peak of a token objective.

    The leaning comes from f' = −W_f / (p (1 − p)) on some 5,000 points between 10⁻⁹ and 1 − 10⁻⁶: f is concave where
    f' never rises. The peak is exact where it lies at an end or at a threshold's edge, and the root of W_f' to
    float64's precision elsewhere.
    """
    p = _grid(1e-9, 1e-6)
    kept = objective.kept(p.log())
    slope = -objective.gradient_weight(p) / (p * (1 - p))
    kept_leaning, linear = _leaning(slope[kept])
    peak, weight = _peak(objective)
    return Shape(kept_leaning if bool(kept.all()) else "neither", linear, kept_leaning, peak, weight)


def _leaning(slope: Tensor) -> tuple[Leaning, bool]:
    """Which way a function bends whose slope at rising points is given; and whether it is a line."""
    change = slope.diff() / slope.abs()[1:].maximum(slope.abs()[:-1]).clamp(min=torch.finfo(slope.dtype).tiny)
    rises, falls = bool((change > SAME_SLOPE).any()), bool((change < -SAME_SLOPE).any())
    if rises and falls:
        return "neither", False
    return ("prior-averse", False) if rises else ("prior-leaning", not falls)


def _peak(objective: TokenObjective) -> tuple[float, float]:
    """Where W_f is greatest on [0, 1], and how great."""
    p = torch.cat([torch.zeros(1).double(), _grid(1e-300, 1e-15), torch.ones(1).double()])
    best = int(objective.gradient_weight(p).argmax())
    low, high = p[max(best - 1, 0)], p[min(best + 1, len(p) - 1)]
    found = p[best]
    for _ in range(ZOOMS):
        near = torch.cat([low + (high - low) * torch.linspace(0, 1, ZOOM_POINTS).double(), found[None]])
        near = near.clamp(0, 1).sort().values
        best = int(objective.gradient_weight(near).argmax())
        low, found, high = near[max(best - 1, 0)], near[best], near[min(best + 1, len(near) - 1)]
    found = _stationary(objective, found, p)
    return float(found), float(objective.gradient_weight(found))


def _stationary(objective: TokenObjective, found: Tensor, grid: Tensor) -> Tensor:
    """The root of W_f' beside `found`; `found` itself at an end or an edge, where W_f' has none.

    Comparing values cannot place a maximum better than to 10⁻⁸: W_f is flat there. Its derivative crosses 0 sharply.
    """
    place = int(torch.searchsorted(grid, found).clamp(1, len(grid) - 2))
    low, high = grid[place - 1], grid[place + 1]
    if not (_rising(objective, low) and _rising(objective, high) is False and low < found < high):
        return found
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _rising(objective, middle) else (low, middle)
    root = (low + high) / 2
    # a jump inside the bracket would have led elsewhere: a root is kept where it is no worse
    weight = objective.gradient_weight
    return root if weight(root) >= weight(found) * (1 - 1e-12) else found


def _rising(objective: TokenObjective, p: Tensor) -> bool | None:
    """Whether W_f rises at p; None where it does neither."""
    leaf = p.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective.gradient_weight(leaf), leaf)
    return None if slope == 0 else bool(slope > 0)


def _grid(least: float, from_one: float) -> Tensor:
    """Rising p in (0, 1), float64: dense in the middle, and near both ends by powers of ten."""
    low = torch.logspace(math.log10(least), -1, 2000, dtype=torch.float64)
    high = 1 - torch.logspace(-1, math.log10(from_one), 1000, dtype=torch.float64)
    middle = torch.linspace(0.1, 0.9, 2001, dtype=torch.float64)
    return torch.cat([low[:-1], middle, high[1:]])
