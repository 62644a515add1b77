"""How attention is cut into calls: by hand, and together they show each query what it may see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.ops import attention_calls as module
from holdfast.ops.attention_calls import Call, attention_calls


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BAND", 2)
    monkeypatch.setattr(module, "STRIPE", 4)


def test_a_causal_part_is_one_call() -> None:
    assert attention_calls(9, 9, None, None) == [Call(slice(0, 9), slice(0, 9), True, None)]
    assert attention_calls(9, 9, 9, None) == [Call(slice(0, 9), slice(0, 9), True, None)]


def test_a_part_behind_a_prompt_by_hand() -> None:
    assert attention_calls(7, 9, None, 4) == [
        Call(slice(0, 4), slice(0, 6), False, None),
        Call(slice(4, 7), slice(0, 9), False, None),
    ]
    assert attention_calls(7, 9, None, None) == [Call(slice(0, 7), slice(0, 9), False, None)]
    assert attention_calls(7, 9, None, 4)[1].rule == (3, 9, None)


def test_calls_are_as_even_as_it_goes() -> None:
    assert [call.queries for call in attention_calls(9, 9, None, 7)] == [slice(0, 5), slice(5, 9)]
    assert [call.causal for call in attention_calls(9, 9, None, 7)] == [True, False]


def test_a_window_by_hand() -> None:
    """Each call has the keys its queries can see, and the first needs no mask."""
    assert attention_calls(10, 10, 4, None) == [
        Call(slice(0, 4), slice(0, 4), True, None),
        Call(slice(4, 8), slice(1, 8), False, 4),
        Call(slice(8, 10), slice(5, 10), False, 4),
    ]
    # one position back at most: calls are not shorter than a band
    assert [call.queries for call in attention_calls(5, 5, 1, None)] == [
        slice(0, 2),
        slice(2, 4),
        slice(4, 5),
    ]


@given(
    queries=st.integers(1, 30),
    before=st.integers(0, 20),
    window=st.none() | st.integers(1, 40),
    at_most=st.none() | st.integers(1, 9),
)
def test_calls_show_what_may_be_seen(
    queries: int, before: int, window: int | None, at_most: int | None
) -> None:
    keys = before + queries
    back = torch.arange(queries)[:, None] + before - torch.arange(keys)[None, :]
    expected = (back >= 0) & (back < (window or keys))
    found = torch.zeros_like(expected)
    for call in attention_calls(queries, keys, window, at_most):
        rows, columns, hiding = call.rule
        assert rows > 0
        local = torch.arange(rows)[:, None] + columns - rows - torch.arange(columns)[None, :]
        assert not found[call.queries].any(), "a query stands in two calls"
        found[call.queries, call.keys] = (local >= 0) & (local < (hiding or columns))
        assert not call.causal or (rows == columns and hiding is None)
        assert rows <= (4 if window is not None and keys > window else at_most or queries)
    assert torch.equal(found, expected)
