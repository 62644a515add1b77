"""Which target tokens carry information: those at places that the two tokens before them do not give away.

A fixed answer format is learned by heart at once, and then drowns any mean over target tokens: of a cipher's answers,
which a model knew nothing of, three tokens in four were quotes, braces and the key, all with p near 1. So a place is
set aside where, over the data set's own targets, nine in ten of those that followed its two predecessors were one and
the same token. The rule reads neither the model nor the token at the place: it does not pick tokens for being easy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyarrow import compute
from torch import Tensor

from holdfast.data.collate import Batch
from holdfast.data.packing import Integers

AGREEMENT = 0.9  # share of the targets after two tokens that must be the same
TARGETS_NEEDED = 10  # fewer cannot give a place away
ROWS = 10_000  # of a data set, evenly spaced: enough to know its format
NONE = -1  # before the first token of a row
STRIDE = 1 << 31  # above every token id


@dataclass(frozen=True)
class InformativeTokens:
    """The pairs of tokens that give away what follows; every other place carries information.

    Attributes:
        given_away: (pairs,) int64, rising: two predecessors as one number.
    """

    given_away: Tensor

    @classmethod
    def of(cls, dataset: Any) -> InformativeTokens:
        """From a tokenized data set (`input_ids`, `completion_mask`), or 10,000 evenly spaced rows of it."""
        if len(dataset) > ROWS:
            dataset = dataset.select(np.linspace(0, len(dataset) - 1, ROWS).astype(int))
        table = dataset.select_columns(["input_ids", "completion_mask"]).with_format("arrow")[:]
        ids, mask = (
            compute.list_flatten(table[name]).to_numpy().astype(np.int64)
            for name in ("input_ids", "completion_mask")
        )
        lengths = compute.list_value_length(table["input_ids"]).to_numpy()
        position = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        targets = np.flatnonzero((mask != 0) & (position > 0))  # a row's first token has no predictor
        before = np.where(position[targets] > 1, ids[np.maximum(targets - 2, 0)], NONE)
        return cls.found(before, ids[targets - 1], ids[targets])

    @classmethod
    def found(cls, before: Integers, last: Integers, targets: Integers) -> InformativeTokens:
        """From targets, the tokens before them, and those before these (`NONE` where a row begins)."""
        contexts, place, times = np.unique(_key(before, last), return_inverse=True, return_counts=True)
        pairs, pair_times = np.unique(place * STRIDE + targets, return_counts=True)
        most = np.zeros_like(times)
        np.maximum.at(most, pairs // STRIDE, pair_times)
        agreed = (times >= TARGETS_NEEDED) & (most >= AGREEMENT * times)
        return cls(torch.from_numpy(contexts[agreed]))

    def to(self, device: torch.device) -> InformativeTokens:
        """The same on a device."""
        return InformativeTokens(self.given_away.to(device))

    def __call__(self, batch: Batch) -> Tensor:
        """(scored,) bool: which of the batch's target tokens carry information. Nothing is read from the device."""
        ids, at = batch["input_ids"], batch["score_index"]
        position = batch["position_ids"].flatten()[at] if "position_ids" in batch else at % ids.shape[1]
        ids = ids.flatten()
        return self.carried(torch.where(position > 0, ids[(at - 1).clamp(min=0)], NONE), ids[at])

    def carried(self, before: Tensor, last: Tensor) -> Tensor:
        """Of targets by the two tokens before them."""
        if not len(self.given_away):
            return torch.ones_like(last, dtype=torch.bool)
        keys = _key(before, last)
        place = torch.searchsorted(self.given_away, keys).clamp(max=len(self.given_away) - 1)
        carried: Tensor = self.given_away[place] != keys
        return carried


def _key(before: Any, last: Any) -> Any:
    """Two tokens as one number, of arrays as of tensors."""
    return (before + 1) * STRIDE + last
