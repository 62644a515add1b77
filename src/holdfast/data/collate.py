"""Rows of tokens -> the tensors of one micro-batch.

A batch is a dict of tensors (so that every loader and launcher can move it):

    input_ids     (rows, time)   right-padded
    position_ids  (rows, time)   only for shared-prefix rows
    segment_ids   (rows, time)   only for shared-prefix rows; see `packing`
    score_index   (tokens,)      into the flattened (rows * time): the state that predicts each scored token
    target_ids    (tokens,)      the scored tokens
    row_index     (examples,)    which rows of the data set these are
    num_tokens    (1,)           tokens the plain form would read: what throughput is counted in

and for pairs, `chosen_slots` / `rejected_slots` (pairs, time): each completion token's place in `tokens`, -1
where padded; `reference_chosen` / `reference_rejected` (pairs,) where the objective needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.data.packing import PAD, Row, masked_row, plain_row, shared_prefix_row

Batch = dict[str, Tensor]
# Summed log-probs lose digits in float32; one kind of device has nothing wider.
WIDEST = torch.float32 if torch.backends.mps.is_available() else torch.float64
Example = Mapping[str, Any]


@dataclass(frozen=True)
class PairCollator:
    """Pairs of token lists (`prompt_ids`, `chosen_ids`, `rejected_ids`) -> one batch.

    `shared_prefix=False` gives the plain form: all chosen rows, then all rejected rows.
    """

    pad_token_id: int
    shared_prefix: bool = True

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
        batch = stack_rows(rows, self.pad_token_id, shared_prefix=self.shared_prefix)
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
    """Rows of tokens (`input_ids`, `completion_mask`) -> one batch of plain causal rows."""

    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> Batch:
        rows = [masked_row(e["input_ids"], e["completion_mask"]) for e in examples]
        batch = stack_rows(rows, self.pad_token_id, shared_prefix=False)
        batch["row_index"] = torch.tensor([e["row_index"] for e in examples])
        batch["num_tokens"] = torch.tensor([sum(len(e["input_ids"]) for e in examples)])
        return batch


def stack_rows(rows: Sequence[Row], pad_token_id: int, *, shared_prefix: bool) -> Batch:
    """Right-pad `rows` to one length and gather where their scored tokens are predicted.

    Plain rows carry no positions and no mask: to the right of a causal row, padding changes nothing, and
    the attention kernels' causal path is their fastest.
    """
    time = max(len(row.input_ids) for row in rows)
    batch: Batch = {"input_ids": _pad([row.input_ids for row in rows], time, pad_token_id)}
    if shared_prefix:
        batch["position_ids"] = _pad([row.position_ids for row in rows], time, 0)
        batch["segment_ids"] = _pad([row.segment_ids for row in rows], time, PAD)
    batch["score_index"] = torch.tensor(
        [n * time + source for n, row in enumerate(rows) for source in row.sources]
    )
    batch["target_ids"] = torch.tensor([target for row in rows for target in row.targets])
    return batch


def _pad(lists: Sequence[Sequence[int]], time: int, value: int) -> Tensor:
    return torch.tensor([[*items, *[value] * (time - len(items))] for items in lists])


def _starts(lengths: Sequence[int]) -> list[int]:
    starts, total = [], 0
    for length in lengths:
        starts.append(total)
        total += length
    return starts


def _slots(starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    return _pad([range(s, s + n) for s, n in zip(starts, lengths, strict=True)], max(lengths), -1)
