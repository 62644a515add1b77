"""The order of an epoch's rows is a function of the seed and the epoch's number."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import RandomSampler

from holdfast.training.epochs import EpochOrder


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 5))
def test_an_epochs_order_is_its_own(rows: int, seed: int, epoch: int) -> None:
    order = EpochOrder(RandomSampler(range(rows)), seed)
    order.set_epoch(epoch)
    first = list(order)
    torch.rand(1)
    assert sorted(first) == list(range(rows))
    assert list(order) == first
    assert first == torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


def test_epochs_differ() -> None:
    order = EpochOrder(RandomSampler(range(20)), 0)
    first = list(order)
    order.set_epoch(1)
    assert list(order) != first
