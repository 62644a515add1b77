"""How long tokenized rows are, counted from their token columns, and an order of rows that groups them by it."""

from __future__ import annotations

from typing import Any

import numpy as np
from pyarrow import compute
from transformers.trainer_pt_utils import LengthGroupedSampler

BLOCK = 1000  # rows that are read at a time, and none of their tokens becomes a Python number


def row_lengths(dataset: Any) -> list[int]:
    """Tokens of each row: of `input_ids`, or of prompt, chosen and rejected together."""
    names = [name for name in dataset.column_names if name.endswith("_ids")]
    counts = [
        np.sum([compute.list_value_length(table.column(name)).to_numpy() for name in names], axis=0)
        for table in dataset.select_columns(names).with_format("arrow").iter(batch_size=BLOCK)
    ]
    lengths: list[int] = np.concatenate(counts).tolist()
    return lengths


def grouped_by_length(dataset: Any, rows_a_step: int) -> LengthGroupedSampler:
    """transformers' order by length, for rows of any kind: shuffled, then sorted within some fifty steps at a time.

    Args:
        rows_a_step: of the global batch: however it is cut into micro-batches and processes, it has the same rows.
    """
    return LengthGroupedSampler(rows_a_step, lengths=row_lengths(dataset))
