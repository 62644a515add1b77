"""How much there is to compute: tokens of rows, steps of a stage, and operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pyarrow import compute

from holdfast.experiments.estimate_shape import DecoderShape
from holdfast.training.config import LeanConfig
from holdfast.training.row_lengths import BLOCK

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Work:
    """Rows by what each of them costs; every array has one number a row.

    Attributes:
        plain: tokens as a plain form reads them (the prompt of a pair twice): `num_tokens` of the metrics.
        computed: tokens that go through the layers.
        scored: tokens that go through the LM head.
        attended: pairs of a query and a key it sees.
    """

    plain: Counts
    computed: Counts
    scored: Counts
    attended: Counts

    def __len__(self) -> int:
        return len(self.plain)

    def largest(self, rows: int) -> tuple[int, int]:
        """(tokens computed, tokens scored) that no micro-batch of so many rows goes beyond."""
        return int(np.sort(self.computed)[-rows:].sum()), int(np.sort(self.scored)[-rows:].sum())

    def average(self, rows: int) -> tuple[int, int]:
        """(tokens computed, tokens scored) of a micro-batch of so many average rows."""
        rows = min(rows, len(self))
        return round(rows * float(self.computed.mean())), round(rows * float(self.scored.mean()))


def work_of(dataset: Any, *, shared_prefix: bool = True) -> Work:
    """The work of tokenized rows: pairs (`prompt_ids`, ...), or demonstrations (`input_ids`, `completion_mask`)."""
    if "input_ids" in dataset.column_names:
        lengths, scored = _lengths(dataset, "input_ids"), _trues(dataset, "completion_mask")
        seen = lengths - 1  # the last token is a target and no input
        return Work(lengths, seen, scored, _causal(seen))
    prompt, chosen, rejected = (_lengths(dataset, f"{side}_ids") for side in ("prompt", "chosen", "rejected"))
    attended = _causal(prompt + chosen - 1) + _causal(prompt + rejected - 1)
    computed = 2 * prompt + chosen + rejected - 2
    if shared_prefix:
        computed, attended = computed - prompt, attended - _causal(prompt)
    return Work(2 * prompt + chosen + rejected, computed, chosen + rejected, attended)


def steps_of(rows: int, args: LeanConfig, processes: int) -> int:
    """Optimizer steps of a stage, as the Trainer counts them."""
    if args.max_steps > 0:
        return args.max_steps
    batches = rows / (args.per_device_train_batch_size * processes)
    micro = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    an_epoch = max(math.ceil(micro / args.gradient_accumulation_steps), 1)
    return math.ceil(args.num_train_epochs * an_epoch)


def operations(
    shape: DecoderShape,
    work: Work,
    *,
    trains_body: bool,
    trains_head: bool,
    adapter: int = 0,
    again: float = 0.0,
) -> float:
    """Floating-point operations of one pass over the rows, forward and backward.

    A weight costs two operations a token in the forward, two for the gradient by its input, two for its own where it
    is trained. Attention costs two products of (query, key) pairs, and in the backward five (FlashAttention-2, Dao
    2023, arXiv:2307.08691, forms one of the forward's again).

    Args:
        adapter: numbers in the LoRA matrices.
        again: share of the layers that activation checkpointing computes a second time.
    """
    tokens, scored = float(work.computed.sum()), float(work.scored.sum())
    pairs = float(work.attended.sum())
    attention = 4.0 * pairs * sum(layer.query for layer in shape.layers)
    forward = 2 * (shape.body + adapter) * tokens + attention
    body = (6 if trains_body else 4) * shape.body * tokens + 6 * adapter * tokens + 3.5 * attention
    head = (6 if trains_head else 4) * shape.head * scored
    return body + again * forward + head


def forward_operations(shape: DecoderShape, work: Work) -> float:
    """Floating-point operations of one pass over the rows without gradients."""
    attention = 4.0 * float(work.attended.sum()) * sum(layer.query for layer in shape.layers)
    return 2 * (shape.body * float(work.computed.sum()) + shape.head * float(work.scored.sum())) + attention


def _causal(lengths: Counts) -> Counts:
    """Pairs of a query and a key, itself or before it."""
    return lengths * (lengths + 1) // 2


def _lengths(dataset: Any, name: str) -> Counts:
    return _joined([compute.list_value_length(column).to_numpy() for column in _columns(dataset, name)])


def _trues(dataset: Any, name: str) -> Counts:
    """How many entries of each row's mask are true; no row is empty."""
    sums = []
    for column in _columns(dataset, name):
        lengths = compute.list_value_length(column).to_numpy()
        flat = compute.list_flatten(column).to_numpy(zero_copy_only=False).astype(np.int64)
        sums.append(np.add.reduceat(flat, np.cumsum(lengths) - lengths))
    return _joined(sums)


def _columns(dataset: Any, name: str) -> list[Any]:
    tables = dataset.select_columns([name]).with_format("arrow").iter(batch_size=BLOCK)
    return [table.column(name).combine_chunks() for table in tables]


def _joined(parts: Sequence[Any]) -> Counts:
    return np.concatenate(parts).astype(np.int64)
