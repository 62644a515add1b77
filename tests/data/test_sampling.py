"""A sample of rows: seeded, without replacement, in the rows' order."""

from __future__ import annotations

import pytest
from datasets import Dataset

from holdfast.data.sampling import some_rows


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return Dataset.from_dict({"number": list(range(40))})


def test_a_sample_is_seeded_and_keeps_the_order(rows: Dataset) -> None:
    def chosen(seed: int) -> list[int]:
        numbers: list[int] = some_rows(rows, 15, seed)["number"][:]
        return numbers

    sample = chosen(1)
    assert len(set(sample)) == 15
    assert sample == sorted(sample) == chosen(1)
    assert sample != chosen(2)


def test_every_row_is_drawn_as_often_as_any_other(rows: Dataset) -> None:
    times = [0] * 40
    for seed in range(200):
        for number in some_rows(rows, 10, seed)["number"][:]:
            times[number] += 1
    assert min(times) > 25  # 50 on average, with a standard deviation of 6.1
    assert max(times) < 75


@pytest.mark.parametrize("count", [None, 40, 100])
def test_all_rows_are_no_sample(rows: Dataset, count: int | None) -> None:
    assert some_rows(rows, count, seed=0) is rows
