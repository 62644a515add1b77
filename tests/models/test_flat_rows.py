"""Flattened rows as attention sees them, worked by hand; every form of the rule says the same."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from holdfast.data.collate import flatten_rows
from holdfast.data.packing import Row, shared_prefix_mask, shared_prefix_row
from holdfast.models.flat_rows import Branch, FlatRows

CPU = torch.device("cpu")
LENGTHS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)


def rows_of(lengths: list[tuple[int, int, int]]) -> list[Row]:
    return [shared_prefix_row(*(list(range(1, n + 1)) for n in triple)) for triple in lengths]


def visible(lengths: list[tuple[int, int, int]], window: int | None) -> Tensor:
    """(tokens, tokens) bool: the padded rows' mask, which has tests of its own, moved to where the tokens now lie."""
    rows = rows_of(lengths)
    places: list[list[int]] = [[] for _ in rows]
    offset = 0
    for row, place in zip(rows, places, strict=True):  # causal parts first ...
        size = row.lengths[0] + row.lengths[1]
        place += range(offset, offset + size)
        offset += size
    for row, place in zip(rows, places, strict=True):  # ... then rejected parts
        place += range(offset, offset + row.lengths[2])
        offset += row.lengths[2]
    allowed = torch.zeros(offset, offset, dtype=torch.bool)
    for row, place in zip(rows, places, strict=True):
        prompt, chosen, rejected = row.lengths
        segments = torch.tensor([[0] * prompt + [1] * chosen + [2] * rejected])
        positions = torch.tensor([[*range(prompt + chosen), *range(prompt, prompt + rejected)]])
        index = torch.tensor(place)
        allowed[index[:, None], index[None, :]] = shared_prefix_mask(segments, positions, window)[0, 0]
    return allowed


def test_parts_by_hand() -> None:
    # two pairs and a plain row: 3+2 and 4, 1+0 and 0, 5; the second pair has no rejected inputs
    rows = FlatRows([(3, 2, 4), (1, 0, 0), (5, 0, 0), (2, 1, 1)], "sdpa")
    assert rows.sizes == [5, 1, 5, 3, 4, 1]
    assert rows.branches == [Branch(row=0, part=4, prompt=3), Branch(row=3, part=5, prompt=2)]


def test_lists_are_as_good_as_tuples() -> None:
    """A loader that pins memory hands on lists."""
    assert FlatRows([[3, 2, 4]], "sdpa").lengths == ((3, 2, 4),)


def test_causal_mask_by_hand() -> None:
    rows = FlatRows([(2, 0, 2)], "sdpa")
    assert rows.causal_mask(2, 4, None, CPU).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert rows.causal_mask(2, 4, 2, CPU).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]


def test_masks_are_built_once() -> None:
    rows = FlatRows([(2, 0, 2)], "sdpa")
    assert rows.causal_mask(2, 4, 3, CPU) is rows.causal_mask(2, 4, 3, CPU)
    assert rows.causal_mask(2, 4, 3, CPU) is not rows.causal_mask(2, 4, 2, CPU)
    assert rows.varlen(CPU) is rows.varlen(CPU)
    positions = flatten_rows(rows_of([(2, 1, 3)]))["position_ids"]
    assert rows.block_mask(positions, 3) is rows.block_mask(positions, 3)


def test_additive_masks_share_the_largest_memory() -> None:
    rows = FlatRows([(2, 0, 2)], "sdpa")
    by_hand = rows.additive_mask(2, 4, None, torch.float64)
    assert by_hand.tolist() == [[0, 0, 0, -torch.inf], [0, 0, 0, 0]]
    asked = [(3, 7), (1, 9), (3, 9), (2, 4), (3, 3), (1, 1)]
    for window in (None, 1, 3):
        views = [rows.additive_mask(*size, window, torch.float32) for size in asked]
        for size, view in zip(asked, views, strict=True):
            assert torch.equal(view == 0, rows.causal_mask(*size, window, CPU))
            assert torch.equal(view.isinf(), view != 0)
        # nothing is built again once the largest is there
        assert len({view.untyped_storage().data_ptr() for view in views[1:]}) == 1
        assert views[1].untyped_storage().nbytes() == 3 * 9 * 4


def test_varlen_by_hand() -> None:
    # tokens: a0 a1 a2 c0 | b0 | r0 r1, where a and b are prompts, and r sees a and itself
    calls = FlatRows([(3, 1, 2), (1, 0, 0)], "flash_attention_2").varlen(CPU)
    assert calls.key_index is not None
    assert calls.key_index.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6]
    assert calls.cu_queries.tolist() == [0, 4, 5, 7]
    assert calls.cu_keys.tolist() == [0, 4, 5, 10]
    assert (calls.longest_query, calls.longest_key) == (4, 5)
    assert calls.cu_queries.dtype == calls.cu_keys.dtype == torch.int32


def test_varlen_of_plain_rows_gathers_nothing() -> None:
    calls = FlatRows([(3, 0, 0), (2, 0, 0)], "flash_attention_2").varlen(CPU)
    assert calls.key_index is None
    assert calls.cu_queries.tolist() == calls.cu_keys.tolist() == [0, 3, 5]


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, window=st.sampled_from([None, 1, 2, 4]))
def test_varlen_shows_each_query_the_keys_of_the_rule(
    lengths: list[tuple[int, int, int]], window: int | None
) -> None:
    """Bottom-right causal sequences, read as a kernel reads them, against the padded rows' mask."""
    expected = visible(lengths, window)
    calls = FlatRows([row.lengths for row in rows_of(lengths)], "flash_attention_2").varlen(CPU)
    index = torch.arange(len(expected)) if calls.key_index is None else calls.key_index
    found = torch.zeros_like(expected)
    for part in range(len(calls.cu_queries) - 1):
        first, last = calls.cu_queries[part : part + 2].tolist()
        keys = index[calls.cu_keys[part] : calls.cu_keys[part + 1]]
        for query in range(first, last):
            end = len(keys) - (last - 1 - query)
            start = 0 if window is None else max(0, end - window)
            found[query, keys[start:end]] = True
    assert torch.equal(found, expected)


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, window=st.sampled_from([None, 1, 2, 4]))
def test_block_mask_is_the_rule(lengths: list[tuple[int, int, int]], window: int | None) -> None:
    rows = rows_of(lengths)
    flat = FlatRows([row.lengths for row in rows], "flex_attention")
    mask = flat.block_mask(flatten_rows(rows)["position_ids"], window)
    tokens = torch.arange(sum(flat.sizes))
    zero = torch.tensor(0)
    found = mask.mask_mod(zero, zero, tokens[:, None], tokens[None, :])
    assert torch.equal(found, visible(lengths, window))
