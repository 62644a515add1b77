"""Which places two tokens give away: by hand, against a plain count, in every form of a batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.data.collate import SFTCollator
from holdfast.data.information import NONE, ROWS, InformativeTokens


def dataset(rows: list[tuple[list[int], list[int]]]) -> Any:
    """(prompt, completion) token lists as a tokenized data set."""
    return datasets.Dataset.from_dict(
        {
            "input_ids": [prompt + completion for prompt, completion in rows],
            "completion_mask": [[0] * len(prompt) + [1] * len(completion) for prompt, completion in rows],
            "row_index": list(range(len(rows))),
        }
    )


# prompt [1, 2]; then 3 always, then one of two tokens, then 5 always
ROWS_OF_A_FORMAT = [([1, 2], [3, 6 + n % 2, 5]) for n in range(20)]


def flags(information: InformativeTokens, data: Any, padding_free: bool, rows: list[int]) -> list[bool]:
    found: list[bool] = information(SFTCollator(0, padding_free)([data[row] for row in rows])).tolist()
    return found


@pytest.mark.parametrize("padding_free", [True, False])
def test_by_hand(padding_free: bool) -> None:
    """After 1 2 comes 3; after 2 3 comes 6 or 7; after 3 6, and after 3 7, comes 5."""
    data = dataset(ROWS_OF_A_FORMAT)
    information = InformativeTokens.of(data)
    assert flags(information, data, padding_free, [0, 1]) == [False, True, False] * 2


def test_ten_meetings_are_needed_and_one_in_ten_may_differ() -> None:
    def given_away(same: int, other: int) -> bool:
        data = dataset([([1, 2], [3])] * same + [([1, 2], [4])] * other)
        return not flags(InformativeTokens.of(data), data, True, [0])[0]

    assert [given_away(9, 0), given_away(10, 0)] == [False, True]
    assert [given_away(9, 1), given_away(89, 11)] == [True, False]


def test_the_place_counts_and_not_its_token() -> None:
    """The one row in ten that differs stands at a place that is given away all the same."""
    data = dataset([([1, 2], [3])] * 19 + [([1, 2], [4])])
    assert flags(InformativeTokens.of(data), data, False, [0, 19]) == [False, False]


def test_what_was_never_met_carries_information() -> None:
    information = InformativeTokens.of(dataset(ROWS_OF_A_FORMAT))
    other = dataset([([1, 9], [3, 6, 5])])
    assert flags(information, other, True, [0]) == [True, True, False]


@pytest.mark.parametrize("padding_free", [True, False])
def test_a_prompt_of_one_token_has_nothing_before_it(padding_free: bool) -> None:
    """The row before it in a flattened batch, or padding, is no context."""
    data = dataset([([2], [3, 4])] * 12 + [([1, 2], [5, 4])])
    information = InformativeTokens.of(data)
    rows = [12, 0, 12, 1]
    assert flags(information, data, padding_free, rows) == [True, True, False, False] * 2


def test_nothing_given_away() -> None:
    data = dataset([([1, 2], [n]) for n in range(5)])
    information = InformativeTokens.of(data)
    assert len(information.given_away) == 0
    assert flags(information, data, True, [0, 1, 2]) == [True] * 3


def test_a_large_data_set_is_sampled_evenly() -> None:
    """Two formats, one after the other: both are found."""
    data = dataset([([1, 2], [3])] * ROWS + [([4, 5], [6])] * ROWS)
    assert flags(InformativeTokens.of(data), data, False, [0, 2 * ROWS - 1]) == [False, False]


def test_large_ids_do_not_meet() -> None:
    """Ids near 2³¹, as far as int64 keys are told apart."""
    large = 2**31 - 2
    before, last = np.array([large] * 10), np.array([large] * 10)
    information = InformativeTokens.found(before, last, np.full(10, 7))
    pairs = torch.tensor([[large, large], [large - 1, large], [large, large - 1], [NONE, large]])
    assert information.carried(pairs[:, 0], pairs[:, 1]).tolist() == [False, True, True, True]


triples = st.lists(
    st.tuples(st.integers(-1, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=200
)


@given(triples)
def test_against_a_plain_count(found: list[tuple[int, int, int]]) -> None:
    before, last, targets = (np.array(column) for column in zip(*found, strict=True))
    information = InformativeTokens.found(before, last, targets)
    times = Counter((b, a) for b, a, _ in found)
    most = Counter[tuple[int, int]]()
    for (b, a, _), count in Counter(found).items():
        most[b, a] = max(most[b, a], count)
    expected = [times[b, a] < 10 or most[b, a] < 0.9 * times[b, a] for b, a, _ in found]
    assert information.carried(torch.from_numpy(before), torch.from_numpy(last)).tolist() == expected
