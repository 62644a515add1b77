"""Builders of small batches of preference pairs, in float64 unless asked otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from holdfast.objectives import PairLogps

Rows = Sequence[Sequence[float]]


def padded(rows: Rows, fill: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Ragged rows of log-probs as (pairs, time), padded with `fill`, and their mask."""
    width = max(len(row) for row in rows)
    values = [[*row, *[fill] * (width - len(row))] for row in rows]
    mask = [[True] * len(row) + [False] * (width - len(row)) for row in rows]
    return torch.tensor(values, dtype=dtype), torch.tensor(mask)


@pytest.fixture
def make_pairs() -> Callable[..., PairLogps]:
    """Build `PairLogps` from ragged rows; what the masks hide is `fill`, NaN unless asked otherwise."""

    def make(
        chosen: Rows,
        rejected: Rows,
        reference_chosen: Sequence[float] | None = None,
        reference_rejected: Sequence[float] | None = None,
        tokens_per_pair: float | None = None,
        *,
        fill: float = float("nan"),
        dtype: torch.dtype = torch.float64,
    ) -> PairLogps:
        chosen_logps, chosen_mask = padded(chosen, fill, dtype)
        rejected_logps, rejected_mask = padded(rejected, fill, dtype)
        references = [
            None if reference is None else torch.tensor(reference, dtype=dtype)
            for reference in (reference_chosen, reference_rejected)
        ]
        return PairLogps(
            chosen_logps.requires_grad_(),
            rejected_logps.requires_grad_(),
            chosen_mask,
            rejected_mask,
            *references,
            tokens_per_pair,
        )

    return make
