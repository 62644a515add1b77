"""Rows of tokens -> one micro-batch, flattened or padded.

A batch is a dict of tensors, which every loader and launcher can move, and of `row_lengths`, which they leave alone:

    input_ids     (1, tokens) flattened, or (rows, time) right-padded
    position_ids  as input_ids    only for flattened and for shared-prefix rows
    row_lengths   one (prompt, chosen, rejected) a row, plain integers: only for flattened rows
    segment_ids   (rows, time)    only for padded shared-prefix rows; see `packing`
    read_index    (read,)         the distinct ones of score_index, ascending: only for flattened rows
    score_index   (scored,)       into the flattened input_ids: the state that predicts each scored token
    target_ids    (scored,)       the scored (completion) tokens
    row_index     (examples,)     which rows of the data set these are
    num_tokens    (1,)            tokens the plain form would read: what throughput is counted in

and for pairs, `chosen_slots` / `rejected_slots` (pairs, time): each completion token's place in `scored`, -1
where padded; `reference_chosen` / `reference_rejected` (pairs,) where the objective needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.data.packing import (
    PAD,
    Integers,
    Row,
    join,
    masked_row,
    plain_row,
    position_ids,
    segment_ids,
    shared_prefix_row,
)

Batch = dict[str, Any]
# Summed log-probs lose digits in float32; one kind of device has nothing wider.
WIDEST = torch.float32 if torch.backends.mps.is_available() else torch.float64
Example = Mapping[str, Any]


@dataclass(frozen=True)
class PairCollator:
    """Pairs of token lists (`prompt_ids`, `chosen_ids`, `rejected_ids`) -> one batch.

    `shared_prefix=False` gives each completion a plain row: all chosen rows, then all rejected rows.
    `padding_free=False` pads the rows to one length instead of flattening them.
    """

    pad_token_id: int
    shared_prefix: bool = True
    padding_free: bool = False

    def __call__(self, examples: Sequence[Example]) -> Batch:
        triples = [(e["prompt_ids"], e["chosen_ids"], e["rejected_ids"]) for e in examples]
        chosen_lengths = [len(chosen) for _, chosen, _ in triples]
        rejected_lengths = [len(rejected) for _, _, rejected in triples]
        if self.shared_prefix:
            rows = [shared_prefix_row(*triple) for triple in triples]
            # scored tokens lie pair by pair: chosen, rejected, chosen, ...
            starts = _starts([n for pair in zip(chosen_lengths, rejected_lengths, strict=True) for n in pair])
            chosen_starts, rejected_starts = starts[0::2], starts[1::2]
        else:
            rows = [plain_row(prompt, chosen) for prompt, chosen, _ in triples]
            rows += [plain_row(prompt, rejected) for prompt, _, rejected in triples]
            starts = _starts([*chosen_lengths, *rejected_lengths])
            chosen_starts, rejected_starts = starts[: len(triples)], starts[len(triples) :]
        batch = (
            flatten_rows(rows)
            if self.padding_free
            else pad_rows(rows, self.pad_token_id, shared_prefix=self.shared_prefix)
        )
        batch["chosen_slots"] = _slots(chosen_starts, chosen_lengths)
        batch["rejected_slots"] = _slots(rejected_starts, rejected_lengths)
        batch["row_index"] = torch.tensor([e["row_index"] for e in examples])
        batch["num_tokens"] = torch.tensor([sum(2 * len(p) + len(c) + len(r) for p, c, r in triples)])
        for key in ("reference_chosen", "reference_rejected"):
            if key in examples[0]:
                batch[key] = torch.tensor([e[key] for e in examples], dtype=WIDEST)
        return batch


@dataclass(frozen=True)
class SFTCollator:
    """Rows of tokens (`input_ids`, `completion_mask`) -> one batch of plain causal rows, flattened or padded."""

    pad_token_id: int
    padding_free: bool = False

    def __call__(self, examples: Sequence[Example]) -> Batch:
        rows = [masked_row(e["input_ids"], e["completion_mask"]) for e in examples]
        batch = (
            flatten_rows(rows)
            if self.padding_free
            else pad_rows(rows, self.pad_token_id, shared_prefix=False)
        )
        batch["row_index"] = torch.tensor([e["row_index"] for e in examples])
        batch["num_tokens"] = torch.tensor([sum(len(e["input_ids"]) for e in examples)])
        return batch


def flatten_rows(rows: Sequence[Row]) -> Batch:
    """All rows as one without padding: the causal part of each, then the rejected part of each.

    The causal part is `[prompt | chosen]`, or a whole plain row. In this order every part is contiguous, and so are
    all causal parts together. Who sees whom is for the attention to say: see `holdfast.models.flat_attention`.
    """
    branches = [prompt + chosen for prompt, chosen, _ in (row.lengths for row in rows)]
    starts = _starts([*branches, *(row.lengths[2] for row in rows)])
    positions = [position_ids(row.lengths) for row in rows]
    sources = [
        # the index in the row -> the index in the batch, for a source in the causal part, and in the rejected part
        row.sources + np.where(row.sources < branch, start, rejected_start - branch)
        for row, branch, start, rejected_start in zip(
            rows, branches, starts[: len(rows)], starts[len(rows) :], strict=True
        )
    ]

    def reorder(arrays: Sequence[Integers]) -> Tensor:
        pieces = [array[:branch] for array, branch in zip(arrays, branches, strict=True)]
        pieces += [array[branch:] for array, branch in zip(arrays, branches, strict=True)]
        return torch.from_numpy(join(pieces))[None]

    score_index = join(sources)
    return {
        "input_ids": reorder([row.input_ids for row in rows]),
        "position_ids": reorder(positions),
        "row_lengths": tuple(row.lengths for row in rows),
        "read_index": torch.from_numpy(np.unique(score_index)),
        "score_index": torch.from_numpy(score_index),
        "target_ids": torch.from_numpy(join(row.targets for row in rows)),
    }


def pad_rows(rows: Sequence[Row], pad_token_id: int, *, shared_prefix: bool) -> Batch:
    """Right-pad `rows` to one length.

    Plain rows carry no positions and no mask: to the right of a causal row, padding changes nothing, and
    the attention kernels' causal path is their fastest.
    """
    time = max(len(row.input_ids) for row in rows)
    batch: Batch = {"input_ids": _pad([row.input_ids for row in rows], time, pad_token_id)}
    if shared_prefix:
        batch["position_ids"] = _pad([position_ids(row.lengths) for row in rows], time, 0)
        batch["segment_ids"] = _pad([segment_ids(row.lengths) for row in rows], time, PAD)
    batch["score_index"] = torch.from_numpy(join(n * time + row.sources for n, row in enumerate(rows)))
    batch["target_ids"] = torch.from_numpy(join(row.targets for row in rows))
    return batch


def _pad(arrays: Sequence[Integers], time: int, value: int) -> Tensor:
    padded = np.full((len(arrays), time), value)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded)


def _starts(lengths: Sequence[int]) -> list[int]:
    return [0, *accumulate(lengths)][:-1]


def _slots(starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    step, width = np.arange(max(lengths)), np.asarray(lengths)[:, None]
    return torch.from_numpy(np.where(step < width, np.asarray(starts)[:, None] + step, -1))
