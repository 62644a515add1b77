"""A flattened micro-batch as attention sees it: where each row's parts lie, and what all layers share.

The order of tokens is `flatten_rows`'s: the causal part `[prompt | chosen]` of every row (all of it, for a plain row),
then the rejected part of every row. A causal part sees itself; a rejected part sees its row's prompt and itself.
Both are causal by position, and in both the last query stands at the last key ("bottom-right" causal), so that
queries and keys of one call need no positions of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from holdfast.data.packing import CHOSEN, PROMPT, REJECTED, Lengths
from holdfast.ops.attention_calls import Call
from holdfast.ops.prefix_attention import PrefixRow

# With more than this share of the tokens read, to compute only those costs as much in copies as it saves.
NEARLY_ALL = 0.9


class Branch(NamedTuple):
    """A rejected part."""

    row: int  # whose prompt it sees: the index of its causal part
    part: int  # its own index among all parts
    prompt: int  # tokens of that prompt


class Varlen(NamedTuple):
    """One call of a variable-length kernel for all parts; each sequence is the queries and keys of one part."""

    key_index: Tensor | None  # (keys,) tokens to gather as keys and values; None: as they lie
    cu_queries: Tensor  # (parts + 1,) int32, where each part's queries start
    cu_keys: Tensor  # (parts + 1,) int32, where each part's keys start
    longest_query: int
    longest_key: int


class FlatRows:
    """The rows of one flattened micro-batch; masks and indices are built once, by the first layer that asks.

    Not a dataclass: FSDP takes those apart and rebuilds them, and every layer would build its own.

    Args:
        lengths: (prompt, chosen, rejected) tokens of each row; see `holdfast.data.collate`.
        backend: the attention implementation the model is configured with.
        read: (read,) int64, the tokens whose last hidden state is read, each once; None: all. Dropped where it is
            nearly all.
    """

    def __init__(self, lengths: Sequence[Sequence[int]], backend: str, read: Tensor | None = None) -> None:
        # a loader that pins memory makes lists of tuples
        self.lengths: tuple[Lengths, ...] = tuple((p, c, r) for p, c, r in lengths)
        self.backend = backend
        self.calls = 0  # of our attention function: 0 after a forward means that no layer came to us
        causal = [prompt + chosen for prompt, chosen, _ in self.lengths]
        rejected = [(row, size) for row, (_, _, size) in enumerate(self.lengths) if size]
        self.sizes = [*causal, *(size for _, size in rejected)]
        self.branches = [
            Branch(row, len(causal) + number, self.lengths[row][0])
            for number, (row, _) in enumerate(rejected)
        ]
        self.read = None if read is None or len(read) > NEARLY_ALL * sum(self.sizes) else read
        self._built: dict[Any, Any] = {}

    def _once(self, key: tuple[Any, ...], build: Callable[[], Any]) -> Any:
        if key not in self._built:
            self._built[key] = build()
        return self._built[key]

    def causal_mask(self, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
        """(queries, keys) bool: bottom-right causal, and less than `window` positions back."""
        return self._once(
            ("mask", queries, keys, window, device), lambda: _bottom_right(queries, keys, window, device)
        )

    def additive_mask(self, queries: int, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """`causal_mask` on the CPU as 0 and -inf, (queries, keys): a view of the largest that was asked for.

        torch makes that of a bool mask in every call, and every layer would keep its own for the backward. Whatever its
        size, the rule is the same seen from the last query and the last key, so that all calls can share one.
        """
        key = "additive", window, dtype
        whole: Tensor | None = self._built.get(key)
        if whole is None or queries > whole.shape[0] or keys > whole.shape[1]:
            so_far = (0, 0) if whole is None else whole.shape
            most = max(queries, so_far[0]), max(keys, so_far[1])
            allowed = _bottom_right(*most, window, torch.device("cpu"))
            whole = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -torch.inf)
            self._built[key] = whole
        return whole[whole.shape[0] - queries :, whole.shape[1] - keys :]

    def build_masks(self, calls: Iterable[Call], dtype: torch.dtype) -> None:
        """Ask for the largest of each kind of additive mask first, so that those of `calls` are views of it."""
        rules = [call.rule for call in calls if not call.causal]
        for window in {rule[2] for rule in rules}:
            own = [rule for rule in rules if rule[2] == window]
            self.additive_mask(max(rule[0] for rule in own), max(rule[1] for rule in own), window, dtype)

    def prefix_rows(self) -> list[PrefixRow]:
        """Where each row's parts lie."""

        def build() -> list[PrefixRow]:
            starts = [0, *accumulate(self.sizes)]
            places = [slice(*ends) for ends in pairwise(starts)]
            rejected = {branch.row: places[branch.part] for branch in self.branches}
            return [
                PrefixRow(places[row], prompt, *([rejected[row]] if row in rejected else []))
                for row, (prompt, _, _) in enumerate(self.lengths)
            ]

        return self._once(("prefix",), build)

    def varlen(self, device: torch.device) -> Varlen:
        """What a variable-length kernel with bottom-right causality needs."""

        def on_device(values: Sequence[int], dtype: torch.dtype) -> Tensor:
            # from unpinned memory, and still without waiting for the device
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

        def build() -> Varlen:
            starts = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
            key_sizes = list(self.sizes)
            pieces = [torch.arange(starts[len(self.lengths)])]
            for branch in self.branches:
                key_sizes[branch.part] += branch.prompt
                prompt, own = starts[branch.row], starts[branch.part]
                pieces += [
                    torch.arange(prompt, prompt + branch.prompt),
                    torch.arange(own, own + self.sizes[branch.part]),
                ]
            index = torch.cat(pieces).to(device, non_blocking=True) if self.branches else None
            cu_keys = torch.tensor([0, *key_sizes]).cumsum(0).tolist()
            return Varlen(
                index,
                on_device(starts, torch.int32),
                on_device(cu_keys, torch.int32),
                max(self.sizes),
                max(key_sizes),
            )

        return self._once(("varlen", device), build)

    def block_mask(self, position_ids: Tensor, window: int | None) -> BlockMask:
        """The rule as FlexAttention takes it; `position_ids` (1, tokens)."""
        position, device = position_ids[0], position_ids.device
        row, segment = self._row_and_segment(device)

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            back = position[query] - position[key]
            allowed = (row[query] == row[key]) & (back >= 0)
            allowed = allowed & ((segment[key] == segment[query]) | (segment[key] == PROMPT))
            return allowed if window is None else allowed & (back < window)

        tokens = len(position)
        return self._once(
            ("block", window, device),
            lambda: create_block_mask(
                visible, B=None, H=None, Q_LEN=tokens, KV_LEN=tokens, device=str(device)
            ),
        )

    def _row_and_segment(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(tokens,) each: the row and the segment of every token."""
        rows = range(len(self.lengths))
        pieces = [(n, s, self.lengths[n][s]) for n in rows for s in (PROMPT, CHOSEN)]
        pieces += [(n, REJECTED, self.lengths[n][REJECTED]) for n in rows]
        table = torch.tensor(pieces).T.to(device, non_blocking=True)
        row, segment, sizes = table
        total = sum(self.sizes)
        return (
            row.repeat_interleave(sizes, output_size=total),
            segment.repeat_interleave(sizes, output_size=total),
        )


def _bottom_right(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) bool: the last query stands at the last key."""
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)
