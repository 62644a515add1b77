"""The rows whose informative tokens a model gives least probability: wrong labels gather there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from holdfast.capability.report import HardRow
from holdfast.capability.scoring import ScoredTokens

HARDEST = 5  # rows listed


def hardest(
    scored: ScoredTokens, informative: NDArray[np.bool_], where: Sequence[str]
) -> tuple[HardRow, ...]:
    """The rows of least mean probability; of equals, the first, and of copies, no other."""
    row_of = scored.row_of[informative]
    counts = np.bincount(row_of, minlength=scored.rows)
    sums = np.bincount(row_of, scored.probabilities[informative], scored.rows)
    having = np.intersect1d(np.flatnonzero(counts), _without_copies(scored))
    means = sums[having] / counts[having]
    chosen = np.argsort(means, kind="stable")[:HARDEST]
    return tuple(
        HardRow(where[having[place]], int(counts[having[place]]), float(means[place])) for place in chosen
    )


def _without_copies(scored: ScoredTokens) -> list[int]:
    """The numbers of the rows, of those with one prompt and one answer the first."""
    ends = np.cumsum(np.bincount(scored.row_of, minlength=scored.rows))
    prompts = np.arange(scored.rows) if scored.prompt_of is None else scored.prompt_of
    first: dict[tuple[int, bytes], int] = {}
    answers = np.split(scored.targets, ends[:-1])
    for row, (prompt, answer) in enumerate(zip(prompts.tolist(), answers, strict=True)):
        first.setdefault((prompt, answer.tobytes()), row)
    return list(first.values())
