"""Some of many rows, drawn by a seed: for what is measured on a sample."""

from __future__ import annotations

from typing import Protocol, Self, TypeVar

import numpy as np


class Selectable(Protocol):
    """Rows that can be selected by number: `StoredRows`, a data set."""

    def __len__(self) -> int: ...

    def select(self, indices: list[int], /) -> Self:
        """Some of the rows."""


R = TypeVar("R", bound=Selectable)


def some_rows(rows: R, count: int | None, seed: int) -> R:
    """A seeded sample without replacement, in the rows' order; all of them where `count` is None or not less."""
    if count is None or count >= len(rows):
        return rows
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return rows.select(sorted(chosen.tolist()))
