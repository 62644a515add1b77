"""Shared-prefix rows, worked by hand."""

from __future__ import annotations

import pytest
import torch

from holdfast.data.packing import (
    CHOSEN,
    PAD,
    PROMPT,
    REJECTED,
    Row,
    masked_row,
    plain_row,
    position_ids,
    segment_ids,
    shared_prefix_mask,
    shared_prefix_row,
)


def lists(row: Row) -> tuple[list[int], tuple[int, int, int], list[int], list[int]]:
    return row.input_ids.tolist(), row.lengths, row.sources.tolist(), row.targets.tolist()


def test_shared_prefix_row_by_hand() -> None:
    # prompt 10 11 12; chosen 20 21; rejected 30 31 32. Last completion tokens are targets only.
    row = shared_prefix_row([10, 11, 12], [20, 21], [30, 31, 32])
    assert row.input_ids.tolist() == [10, 11, 12, 20, 30, 31]
    assert row.lengths == (3, 1, 2)
    assert row.targets.tolist() == [20, 21, 30, 31, 32]
    # 20 and 30 are both predicted by the prompt's last token (index 2)
    assert row.sources.tolist() == [2, 3, 2, 4, 5]
    # the rejected part restarts at the prompt's end
    assert position_ids(row.lengths).tolist() == [0, 1, 2, 3, 3, 4]
    assert segment_ids(row.lengths).tolist() == [PROMPT] * 3 + [CHOSEN] + [REJECTED] * 2


def test_one_token_prompt_and_completions() -> None:
    assert lists(shared_prefix_row([1], [2], [3])) == ([1], (1, 0, 0), [0, 0], [2, 3])
    assert lists(shared_prefix_row([1], [2], [3, 4])) == ([1, 3], (1, 0, 1), [0, 0, 1], [2, 3, 4])


def test_plain_row_by_hand() -> None:
    assert lists(plain_row([10, 11], [20, 21])) == ([10, 11, 20], (3, 0, 0), [1, 2], [20, 21])


def test_masked_row_by_hand() -> None:
    # two assistant turns: tokens 2 and 5 are trained, 6 comes after the last of them
    row = masked_row([1, 2, 3, 4, 5, 6], [False, True, False, False, True, False])
    assert lists(row) == ([1, 2, 3, 4], (4, 0, 0), [0, 3], [2, 5])


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "name"),
    [([], [1], [1], "prompt"), ([1], [], [1], "chosen"), ([1], [1], [], "rejected")],
)
def test_empty_parts_are_named(prompt: list[int], chosen: list[int], rejected: list[int], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        shared_prefix_row(prompt, chosen, rejected)


def test_masked_row_faults() -> None:
    with pytest.raises(ValueError, match="no token"):
        masked_row([1, 2], [False, False])
    with pytest.raises(ValueError, match="first token"):
        masked_row([1, 2], [True, False])
    with pytest.raises(ValueError, match="2 tokens but 1"):
        masked_row([1, 2], [True])


def test_mask_by_hand() -> None:
    # row: prompt p0 p1 | chosen c | rejected r0 r1 | padding
    segments = torch.tensor([[PROMPT, PROMPT, CHOSEN, REJECTED, REJECTED, PAD]])
    positions = torch.tensor([[0, 1, 2, 2, 3, 0]])
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 0, 1, 0, 0],  # rejected sees the prompt and itself, not the chosen
            [1, 1, 0, 1, 1, 0],
            [0, 0, 0, 0, 0, 1],  # padding sees itself
        ],
        dtype=torch.bool,
    )
    assert torch.equal(shared_prefix_mask(segments, positions)[0, 0], expected)
    # window 2: distances in positions; r0 (position 2) still sees p1 (position 1) but not p0
    windowed = expected.clone()
    windowed[2, 0] = windowed[3, 0] = windowed[4, 0] = windowed[4, 1] = False
    assert torch.equal(shared_prefix_mask(segments, positions, sliding_window=2)[0, 0], windowed)
