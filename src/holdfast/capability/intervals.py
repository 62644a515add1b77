"""Intervals for ratios of sums over rows: whole rows are drawn again, never tokens, and rows of one prompt together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 1000
SEEDS = 2**32  # a seed is below it, and at least 0: a run's
CELLS = 4_000_000  # entries of the table of weights that are held at a time

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A value and the bounds of its 95 % interval; None where nothing, or no interval, can be had."""

    value: float | None
    low: float | None = None
    high: float | None = None


def row_bootstrap(
    numerators: Any,
    denominators: Any,
    seed: int,
    prompt_of: Integers | None = None,
    resamples: int = RESAMPLES,
) -> list[Estimate]:
    """Ratios of sums over rows, Σ numerator / Σ denominator, each with a percentile interval clustered by row.

    Tokens of one row are no independent draws, so whole rows are drawn, all ratios from the same draws: intervals of
    two ratios of one call can be set side by side. Rows of one prompt are drawn together: a copy of a row says nothing
    new, and another answer to a known prompt less than a row of its own. Fewer than two such draws with a denominator
    have no interval; nor does a ratio that some draw has no denominator for (a handful of rows out of many).

    Args:
        numerators, denominators: (ratios, rows).
        seed: the draws depend on it and on the number of prompts alone; those of a mean are `bootstrap_mean`'s.
        prompt_of: (rows,) the number of each row's prompt (see `prompt_numbers`); None: each row has its own.
    """
    top, bottom = np.atleast_2d(np.asarray(numerators, float)), np.atleast_2d(np.asarray(denominators, float))
    if prompt_of is not None:
        top, bottom = _by_prompt(top, prompt_of), _by_prompt(bottom, prompt_of)
    rows = top.shape[1]
    totals = bottom.sum(axis=1)
    values = np.divide(top.sum(axis=1), totals, out=np.full(len(top), np.nan), where=totals > 0)
    if rows < 2:
        return [Estimate(_finite(value)) for value in values]
    generator = np.random.default_rng(seed)
    drawn, done = np.empty((resamples, len(top))), 0
    while done < resamples:
        size = min(resamples - done, max(1, CELLS // rows))
        weights = _weights(generator, size, rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn[done : done + size] = (weights @ top.T) / (weights @ bottom.T)
        done += size
    bounds = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    enough = (bottom > 0).sum(axis=1) >= 2
    return [
        Estimate(_finite(value), _finite(low), _finite(high)) if some else Estimate(_finite(value))
        for value, low, high, some in zip(values, *bounds, enough, strict=True)
    ]


def prompt_numbers(prompts: Iterable[Hashable]) -> Integers:
    """(rows,) the number of each row's prompt, from 0 in the order in which they first appear."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], dtype=np.int64)


def _by_prompt(values: Floats, prompt_of: Integers) -> Floats:
    """(ratios, rows) -> (ratios, prompts), summed."""
    return np.stack([np.bincount(prompt_of, own) for own in values])


def _weights(generator: np.random.Generator, size: int, rows: int) -> Floats:
    """(size, rows) how often each row is drawn, `rows` draws with replacement."""
    places = generator.integers(0, rows, size=(size, rows)) + rows * np.arange(size)[:, None]
    return np.bincount(places.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
