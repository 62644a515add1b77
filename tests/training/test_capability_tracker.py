"""The running mean of p over tokens, informative ones above all: by hand, over processes, and through a checkpoint."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from holdfast.data.information import InformativeTokens
from holdfast.training.capability_tracker import CapabilityTracker

ALL = InformativeTokens(torch.zeros(0, dtype=torch.int64))
CPU = torch.device("cpu")


class Processes:
    """What `reduce` gives where the other processes have `others` to add."""

    def __init__(self, others: Tensor | None = None) -> None:
        self.others = others

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return tensor if self.others is None else tensor + self.others


def batch(tokens: int) -> dict[str, Any]:
    """A padded batch whose only row has that many targets."""
    ids = torch.arange(tokens + 2)[None]
    return {"input_ids": ids, "score_index": torch.arange(1, tokens + 1), "target_ids": ids[0, 2:]}


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def tracker(half_life: float = 1.0, start: float = 0.3) -> CapabilityTracker:
    return CapabilityTracker(ALL, half_life, start, CPU)


def step(tracked: CapabilityTracker, *probabilities: float) -> float:
    tracked.add(batch(len(probabilities)), logs(*probabilities))
    tracked.close(Processes())
    return tracked.capability.item()


def test_by_hand() -> None:
    """Half-life 1: each global batch counts half of the next one, token by token."""
    tracked = tracker(half_life=1)
    assert tracked.capability.item() == 0.3
    assert step(tracked, 0.2, 0.4) == pytest.approx(0.3)  # 0.6 / 2
    assert step(tracked, 0.9) == pytest.approx((0.3 + 0.9) / (1 + 1))
    assert step(tracked, 0.5, 0.5) == pytest.approx((0.6 + 1.0) / (1 + 2))


def test_the_last_batch_alone() -> None:
    tracked = tracker(half_life=0)
    step(tracked, 0.2)
    assert step(tracked, 0.8) == pytest.approx(0.8)


def test_half_life() -> None:
    """After `half_life` batches of another value, the mean stands half way between (of equal counts, at the limit)."""
    tracked = tracker(half_life=5)
    for _ in range(200):
        step(tracked, 0.0)
    for _ in range(5):
        found = step(tracked, 1.0)
    assert found == pytest.approx(0.5)


def test_only_tokens_that_carry_information_count() -> None:
    tracked = CapabilityTracker(
        InformativeTokens.found(*torch.tensor([[0, 1, 2]] * 10).numpy().T), 1.0, 0.5, CPU
    )
    tracked.add(batch(3), logs(1.0, 0.2, 0.4))  # after 0 1 the next token is given away
    tracked.close(Processes())
    assert tracked.capability.item() == pytest.approx(0.3)


def test_a_format_that_is_not_known_counts_too() -> None:
    """The lesser mean: what is given away is easy for a model that has met the format."""
    tracked = CapabilityTracker(
        InformativeTokens.found(*torch.tensor([[0, 1, 2]] * 10).numpy().T), 1.0, 0.5, CPU
    )
    tracked.add(batch(3), logs(0.1, 0.8, 0.9))  # after 0 1 the next token is given away
    tracked.close(Processes())
    assert tracked.capability.item() == pytest.approx(0.1)
    tracked.add(batch(3), logs(1.0, 0.2, 0.6))
    tracked.close(Processes())
    # given away: (0.1 / 2 + 1) / 1.5 = 0.7; informative: (1.7 / 2 + 0.8) / 3 = 0.55
    assert tracked.capability.item() == pytest.approx(0.55)


def test_nothing_that_carries_information_leaves_the_start() -> None:
    every = InformativeTokens.found(*torch.tensor([[0, 1, 2]] * 10).numpy().T)
    tracked = CapabilityTracker(every, 1.0, 0.25, CPU)
    tracked.add(batch(1), logs(1.0))
    tracked.close(Processes())
    assert tracked.capability.item() == 0.25


@given(st.lists(st.lists(st.floats(1e-6, 1), min_size=1, max_size=4), min_size=1, max_size=5))
def test_the_cut_of_a_global_batch_does_not_matter(cuts: list[list[float]]) -> None:
    """Micro-batches, one batch, or processes: tokens count, not parts."""
    whole, parts, ranks = tracker(), tracker(), tracker()
    for one in (whole, parts, ranks):
        step(one, 0.7, 0.1)
    flat = [p for cut in cuts for p in cut]
    expected = step(whole, *flat)
    for cut in cuts:
        parts.add(batch(len(cut)), logs(*cut))
    parts.close(Processes())
    ranks.add(batch(len(cuts[0])), logs(*cuts[0]))
    others = [p for cut in cuts[1:] for p in cut]
    ranks.close(
        Processes(torch.tensor([[math.fsum(others), float(len(others))], [0, 0]], dtype=torch.float64))
    )
    assert parts.capability.item() == pytest.approx(expected)
    assert ranks.capability.item() == pytest.approx(expected)


def test_it_moves_only_between_global_batches() -> None:
    tracked = tracker()
    step(tracked, 0.4)
    tracked.add(batch(1), logs(0.9))
    assert tracked.capability.item() == pytest.approx(0.4)
    tracked.forget()
    tracked.close(Processes())
    assert tracked.capability.item() == pytest.approx(0.4)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_is_left_out(broken: float) -> None:
    tracked = tracker()
    step(tracked, 0.4)
    tracked.add(batch(2), torch.tensor([broken, -1.0]))
    tracked.close(Processes())
    assert tracked.capability.item() == pytest.approx(0.4)


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=8), st.integers(0, 6))
def test_resumed_it_goes_on_to_the_last_bit(steps: list[float], stop: int) -> None:
    """Through JSON, as a checkpoint's state goes."""
    whole, first = tracker(half_life=3), tracker(half_life=3)
    stop = min(stop, len(steps))
    expected = [step(whole, p, p / 2) for p in steps]
    found = [step(first, p, p / 2) for p in steps[:stop]]
    second = tracker(half_life=3, start=0.99)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [step(second, p, p / 2) for p in steps[stop:]]
    assert found == expected


def test_nothing_is_read_back_from_the_device() -> None:
    tracked = CapabilityTracker(ALL, 10, 0.5, torch.device("meta"))
    tokens = {name: tensor.to("meta") for name, tensor in batch(3).items()}
    tracked.add(tokens, torch.empty(3, device="meta"))
    tracked.close(Processes())
    assert tracked.capability.device.type == "meta"
