"""Names of tensors that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.training.finite import nonfinite_names

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_element_is_found(dtype: torch.dtype, bad: float) -> None:
    values = torch.linspace(-2, 2, 9)
    good = {"a": values.to(dtype), "b": values.reshape(3, 3).to(dtype)}
    assert nonfinite_names(good) == []
    values = values.clone()
    values[5] = bad
    worse = {"c": values.to(dtype), "d": values.reshape(3, 3).t().to(dtype)}
    assert nonfinite_names(good | worse) == ["c", "d"]


def test_the_greatest_numbers_of_a_format_are_finite() -> None:
    greatest = {
        str(kind): torch.tensor([torch.finfo(kind).max], dtype=torch.float64).to(kind) for kind in FLOATS
    }
    assert all(tensor.double() == torch.finfo(tensor.dtype).max for tensor in greatest.values())
    assert nonfinite_names(greatest) == []
    assert nonfinite_names({"e4m3": torch.tensor([448.0]).to(torch.float8_e4m3fn)}) == []
    assert nonfinite_names({"e4m3": torch.tensor([math.nan]).to(torch.float8_e4m3fn)}) == ["e4m3"]


def test_what_cannot_be_bad_is_passed_over() -> None:
    others = {
        "integers": torch.arange(3),
        "packed": torch.full((4,), 255, dtype=torch.uint8),
        "truth": torch.tensor([True]),
        "empty": torch.zeros(0),
        "elsewhere": torch.empty(3, device="meta"),
    }
    assert nonfinite_names(others) == []
    assert nonfinite_names({}) == []
    assert nonfinite_names({"z": torch.tensor(math.nan), **others, "a": torch.tensor([math.inf])}) == [
        "z",
        "a",
    ]


@given(st.lists(st.lists(st.floats(width=32), max_size=5), max_size=6))
def test_as_isfinite_has_it(rows: list[list[float]]) -> None:
    tensors = {str(n): torch.tensor(row, dtype=torch.float32) for n, row in enumerate(rows)}
    assert nonfinite_names(tensors) == [n for n, t in tensors.items() if not t.isfinite().all()]
