"""What a set of target tokens says in numbers: means with intervals, histogram, percentiles, rows, groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.capability.intervals import Estimate, row_bootstrap
from holdfast.capability.scoring import ScoredTokens

CONFIDENT = 0.55  # the paper's second proxy is the share of target tokens above it
RULED_OUT = 0.01  # a token the model all but excludes: a wrong label, or something it has never met
BINS = 100  # of the histogram, from 0 to 1
ROW_QUANTILES = (0, 5, 25, 50, 75, 95, 100)
PARTS = ("first quarter", "second quarter", "third quarter", "last quarter")

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class TokenSummary:
    """Some target tokens: all of them, or those that carry information.

    Attributes:
        tokens, rows: how many, and of how many rows.
        mean_probability: every token counts once.
        row_mean_probability: the mean over rows of each row's mean: every row counts once.
        share_confident: of tokens with p above 0.55.
        share_ruled_out: of tokens with p below 0.01.
        mean_logp: nats a token; None where a token has p = 0.
        histogram: tokens in each of 100 equal bins of p from 0 to 1, the last one with p = 1.
        percentiles: of p, 0 to 100; linear between neighbours, as numpy's.
        row_quantiles: of the rows' mean p, at 0, 5, 25, 50, 75, 95 and 100 %.
    """

    tokens: int
    rows: int
    mean_probability: Estimate
    row_mean_probability: Estimate
    share_confident: Estimate
    share_ruled_out: Estimate
    mean_logp: Estimate
    histogram: tuple[int, ...]
    percentiles: tuple[float, ...]
    row_quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Group:
    """Tokens that share a place in the answer, or a source.

    Attributes:
        name: `0`, `4-7`, `first quarter`, a file, a column's value.
        tokens, informative_tokens: how many.
        mean_probability, informative_mean_probability: of them.
    """

    name: str
    tokens: int
    mean_probability: Estimate
    informative_tokens: int
    informative_mean_probability: Estimate


def summarise(scored: ScoredTokens, counted: Mask, seed: int) -> TokenSummary | None:
    """The summary of the `counted` tokens; None where there are none. Intervals as `row_bootstrap` draws them."""
    if not counted.any():
        return None
    p, logps, row_of = scored.probabilities[counted], scored.logps[counted], scored.row_of[counted]
    counts = np.bincount(row_of, minlength=scored.rows).astype(float)
    sums = np.bincount(row_of, weights=p, minlength=scored.rows)
    having = counts > 0
    row_means = np.divide(sums, counts, out=np.zeros(scored.rows), where=having)
    confident = np.bincount(row_of, weights=p > CONFIDENT, minlength=scored.rows)
    ruled_out = np.bincount(row_of, weights=p < RULED_OUT, minlength=scored.rows)
    finite = np.isfinite(logps).all()
    nats = np.bincount(row_of, weights=logps if finite else np.zeros(len(logps)), minlength=scored.rows)
    mean, row_mean, share, excluded, logp = row_bootstrap(
        [sums, row_means, confident, ruled_out, nats],
        [counts, having, counts, counts, counts],
        seed,
        scored.prompt_of,
    )
    return TokenSummary(
        tokens=len(p),
        rows=int(having.sum()),
        mean_probability=mean,
        row_mean_probability=row_mean,
        share_confident=share,
        share_ruled_out=excluded,
        mean_logp=logp if finite else Estimate(None),
        histogram=tuple(np.histogram(p, bins=BINS, range=(0, 1))[0].tolist()),
        percentiles=tuple(np.quantile(p, np.arange(101) / 100).tolist()),
        row_quantiles=tuple(np.quantile(row_means[having], np.array(ROW_QUANTILES) / 100).tolist()),
    )


def share_ruled_out(scored: ScoredTokens, counted: Mask, seed: int) -> Estimate:
    """The share of the `counted` tokens with p below 0.01, with an interval as `row_bootstrap` draws it."""
    row_of = scored.row_of[counted]
    ruled_out = np.bincount(row_of, scored.probabilities[counted] < RULED_OUT, scored.rows)
    return row_bootstrap(ruled_out, np.bincount(row_of, minlength=scored.rows), seed, scored.prompt_of)[0]


def by_index(scored: ScoredTokens, informative: Mask, seed: int) -> tuple[Group, ...]:
    """Groups by a token's number in its answer, from 0, doubling: 0, 1, 2-3, 4-7, 8-15, ..."""
    index, _ = _places(scored)
    bucket = np.where(index == 0, 0, np.floor(np.log2(np.maximum(index, 1))).astype(np.int64) + 1)
    names = [_span(number) for number in range(int(bucket.max()) + 1)]
    return groups(scored, informative, bucket, names, seed)


def by_part(scored: ScoredTokens, informative: Mask, seed: int) -> tuple[Group, ...]:
    """Groups by the quarter of its answer that a token stands in; rows of fewer than four tokens are left out."""
    index, length = _places(scored)
    part = np.where(length >= len(PARTS), index * len(PARTS) // np.maximum(length, 1), -1)
    return groups(scored, informative, part, PARTS, seed)


def groups(
    scored: ScoredTokens, informative: Mask, group_of: NDArray[np.int64], names: Sequence[str], seed: int
) -> tuple[Group, ...]:
    """Each group that has a token, in the order of `names`; a token of group -1 belongs to none."""
    inside = group_of >= 0
    shape = (len(names), scored.rows)
    numerators, denominators = [], []
    for counted in (inside, inside & informative):
        cell = group_of[counted] * scored.rows + scored.row_of[counted]
        size = len(names) * scored.rows
        numerators.append(
            np.bincount(cell, weights=scored.probabilities[counted], minlength=size).reshape(shape)
        )
        denominators.append(np.bincount(cell, minlength=size).reshape(shape))
    every, carrying = (
        row_bootstrap(top, bottom, seed, scored.prompt_of)
        for top, bottom in zip(numerators, denominators, strict=True)
    )
    found = [
        Group(name, int(tokens), mean, int(informative_tokens), informative_mean)
        for name, tokens, mean, informative_tokens, informative_mean in zip(
            names, denominators[0].sum(1), every, denominators[1].sum(1), carrying, strict=True
        )
    ]
    return tuple(group for group in found if group.tokens)


def _places(scored: ScoredTokens) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(tokens,) each token's number in its answer, and its answer's length."""
    lengths = np.bincount(scored.row_of, minlength=scored.rows)
    starts = np.r_[0, np.cumsum(lengths)[:-1]]
    return np.arange(len(scored.row_of)) - starts[scored.row_of], lengths[scored.row_of]


def _span(number: int) -> str:
    """The tokens of a doubling bucket: 0, 1, 2-3, 4-7, ..."""
    if number < 2:
        return str(number)
    return f"{2 ** (number - 1)}-{2**number - 1}"
