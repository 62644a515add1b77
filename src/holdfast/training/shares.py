"""Rows shared out among the processes of a run: each row to one of them, and as many micro-batches to each.

The same rows make a global batch, in the same order, however many processes take part. Accelerate's own shares fill the
last micro-batches up with rows from the beginning of the data set, which then count twice, in training and evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler

from holdfast.data.collate import Batch

# What the model reads of a batch; all else belongs to its rows.
INPUTS = frozenset({"input_ids", "position_ids", "segment_ids", "row_lengths", "read_index"})


class Shares(BatchSampler):
    """One process's micro-batches of an epoch, as lists of row numbers.

    The processes take `processes * batch_size` rows at a time, each its part, as one process with micro-batches of that
    size would. What is left at the end is shared out evenly; a process gets an empty list where there is no row for it,
    since all of them must take part in every forward.

    Args:
        sampler: the order of the rows, the same in every process.
        batch_size: rows of a micro-batch of one process.
        processes, rank: how many there are, and which this is.
        drop_last: leave out what does not fill a micro-batch of every process.
    """

    def __init__(
        self, sampler: Sampler[int], batch_size: int, processes: int, rank: int, drop_last: bool = False
    ) -> None:
        self.sampler, self.drop_last = sampler, drop_last
        self.batch_size = None  # type: ignore[assignment]  # of varying size, as Accelerate is told it
        self._size, self._processes, self._rank = batch_size, processes, rank

    def __len__(self) -> int:
        whole, left = divmod(len(self.sampler), self._processes * self._size)  # type: ignore[arg-type]
        return whole + (left > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        rows, together = iter(self.sampler), self._processes * self._size
        while taken := list(islice(rows, together)):
            if len(taken) == together or not self.drop_last:
                start, stop = (len(taken) * n // self._processes for n in (self._rank, self._rank + 1))
                yield taken[start:stop]


@dataclass(frozen=True)
class EvenWithoutRows:
    """A collator that makes a batch of no rows too: the model reads a row that stands in, and nothing of it counts."""

    collator: Callable[[Sequence[Mapping[str, Any]]], Batch]
    stand_in: Mapping[str, Any]

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        return self.collator(examples) if len(examples) else emptied(self.collator([self.stand_in]))


def emptied(batch: Batch) -> Batch:
    """The batch with its inputs, and without rows or scored tokens."""
    return {
        name: value if name in INPUTS else value.new_zeros(1) if name == "num_tokens" else _none_of(value)
        for name, value in batch.items()
    }


def _none_of(value: Tensor) -> Tensor:
    return value[:0]


def share_out(loader: DataLoader[Any], processes: int, rank: int) -> None:
    """Have a loader that Accelerate has prepared take its rows by `Shares`, in place of Accelerate's."""
    shard: Any = loader.batch_sampler
    whole = shard.batch_sampler
    shard.batch_sampler = Shares(whole.sampler, whole.batch_size, processes, rank, whole.drop_last)
    # Passed through as they are, as the Trainer does with a sampler of its own that knows the processes.
    shard.num_processes, shard.process_index, shard.batch_size = 1, 0, None
