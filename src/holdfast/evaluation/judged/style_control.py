"""Style control after the current Arena-Hard's: the win rate left when length and markdown are accounted for.

A logistic regression of the outcomes on how much longer, and how much more marked up, the model's answer is. The
features are z-scored, so the model's own coefficient is its strength at the average of them. It is not the tool's
number: docs/evaluation.md says in what they differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Floats = NDArray[np.float64]

_CODE = re.compile(r"```([^`]*)```")
_LISTS = {
    "ordered": re.compile(r"^\s*\d+\.\s", re.MULTILINE),
    "unordered": re.compile(r"^\s*[-*+]\s", re.MULTILINE),
}
_BOLD = {"**": re.compile(r"\*\*[^*\n]+\*\*"), "__": re.compile(r"__[^_\n]+__")}
_HEADERS = {f"h{depth}": re.compile(rf"^#{{{depth}}}\s", re.MULTILINE) for depth in range(1, 7)}

ROUNDS = 100  # bootstrap fits
FARTHEST = 20.0  # a coefficient beyond this is a certainty, and has no finite maximum


@dataclass(frozen=True)
class Style:
    """Marks of markdown outside code blocks, by kind."""

    headers: dict[str, int]
    lists: dict[str, int]
    bold: dict[str, int]

    def as_record(self) -> dict[str, dict[str, int]]:
        """As the answer files have it."""
        return {"header_count": self.headers, "list_count": self.lists, "bold_count": self.bold}

    def totals(self) -> list[int]:
        """Headers, list entries, bold passages."""
        return [sum(kind.values()) for kind in (self.headers, self.lists, self.bold)]


def style_of(text: str) -> Style:
    """Count the marks of an answer."""
    outside = _CODE.sub("", text)

    def count(patterns: dict[str, re.Pattern[str]]) -> dict[str, int]:
        return {name: len(pattern.findall(outside)) for name, pattern in patterns.items()}

    return Style(count(_HEADERS), count(_LISTS), count(_BOLD))


def style_features(model: Sequence[Sequence[int]], baseline: Sequence[Sequence[int]]) -> Floats:
    """(rows, 4) z-scored differences of length, headers, lists and bold, from (rows, 4) counts `[tokens, ...]`.

    Length: (m - b) / (m + b). The others, as densities d = count / (tokens + 1): (m - b) / (m + b + 1). A feature that
    is the same in all rows is 0.
    """
    one, other = np.asarray(model, float), np.asarray(baseline, float)
    length, other_length = one[:, :1], other[:, :1]
    density, other_density = one[:, 1:] / (length + 1), other[:, 1:] / (other_length + 1)
    total = length + other_length
    raw = np.hstack(
        [
            np.divide(length - other_length, total, out=np.zeros_like(total), where=total > 0),
            (density - other_density) / (density + other_density + 1),
        ]
    )
    spread = raw.std(axis=0, ddof=1)
    return np.divide(raw - raw.mean(axis=0), spread, out=np.zeros_like(raw), where=spread > 0)


@dataclass(frozen=True)
class Controlled:
    """The win rate at equal style, and the coefficients: how much each feature moves the judge, in log-odds.

    Attributes:
        low, high: 5th and 95th percentile of the bootstrap fits; `value` is their mean.
        coefficients: of length, headers, lists and bold, fitted to all rows.
    """

    value: float
    low: float
    high: float
    coefficients: tuple[float, float, float, float]


def controlled_win_rate(
    points: Sequence[float], features: Floats, *, seed: int = 42, rounds: int = ROUNDS
) -> Controlled:
    """Fit (rows,) points of 1, 0.5 or 0 on (rows, 4) features and a constant, the model's strength."""
    outcomes = np.asarray(points, float)
    design = np.hstack([np.ones((len(outcomes), 1)), features])
    whole = _fit(design, outcomes, np.zeros(design.shape[1]))
    generator = np.random.default_rng(seed)
    rates = np.empty(rounds)
    for index in range(rounds):
        places = generator.integers(0, len(outcomes), size=len(outcomes))
        rates[index] = expit(_fit(design[places], outcomes[places], whole)[0])
    low, high = np.quantile(rates, [0.05, 0.95])
    length, headers, lists, bold = map(float, whole[1:])
    return Controlled(float(rates.mean()), float(low), float(high), (length, headers, lists, bold))


def _fit(design: Floats, outcomes: Floats, start: Floats) -> Floats:
    """Coefficients of least cross-entropy, within bounds for rows that a plane separates."""

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits = design @ weights
        value = np.logaddexp(0, logits).sum() - outcomes @ logits
        return float(value), design.T @ (expit(logits) - outcomes)

    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[(-FARTHEST, FARTHEST)] * design.shape[1]
    )
    return np.asarray(found.x)
