"""Before and after on held-out pairs, worked by hand."""

from __future__ import annotations

import pytest
import torch

from holdfast.experiments.verdict import changes, verdict
from holdfast.training.scoring import PairScores


def scores(chosen: list[float], rejected: list[float], tokens: int = 2, collapsed: float = 0.0) -> PairScores:
    count = len(chosen)
    lengths = torch.full((count,), float(tokens), dtype=torch.float64)
    return PairScores(
        torch.tensor(chosen, dtype=torch.float64),
        torch.tensor(rejected, dtype=torch.float64),
        lengths,
        lengths,
        torch.full((count,), collapsed, dtype=torch.float64),
    )


def test_changes_by_hand() -> None:
    # two tokens each: -4 nats is -2 a token; the second pair's preference is won
    before = scores([-4.0, -8.0], [-6.0, -6.0])
    after = scores([-2.0, -4.0], [-6.0, -8.0], collapsed=1.0)
    chosen, rejected, accuracy, collapsed = changes(before, after)
    assert (chosen.before, chosen.after, chosen.change) == (-3.0, -1.5, 1.5)
    assert (rejected.before, rejected.after) == (-3.0, -3.5)
    assert (accuracy.before, accuracy.after) == (0.5, 1.0)
    assert (collapsed.before, collapsed.after) == (0.0, 0.5)
    assert chosen.low is None  # two pairs make no interval
    assert "too few for an interval" in chosen.sentence()


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(-0.5, "Unlearning"), (0.5, "No unlearning"), (0.0, "No clear change")],
)
def test_verdict_follows_the_interval(shift: float, expected: str) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(50, generator=generator) * 0.1).tolist()
    before = scores([-4.0] * 50, [-6.0] * 50)
    centred = [value - sum(noise) / 50 for value in noise]
    after = scores([-4.0 + 2 * shift + value for value in centred], [-6.0] * 50)
    measured = changes(before, after)
    assert verdict(measured)[0].startswith(expected)
    assert measured[0].low is not None
    assert measured[0].low <= measured[0].change <= measured[0].high


def test_a_change_too_small_to_matter_is_no_verdict() -> None:
    before, after = scores([-4.0] * 50, [-6.0] * 50), scores([-3.999] * 50, [-6.0] * 50)
    measured = changes(before, after)
    assert measured[0].low is not None
    assert measured[0].low > 0  # sure, and tiny
    assert verdict(measured)[0].startswith("No clear change")


def test_collapse_is_told() -> None:
    before, after = scores([-4.0] * 20, [-6.0] * 20), scores([-4.0] * 20, [-6.0] * 20, collapsed=1.0)
    assert any("collapsing" in line for line in verdict(changes(before, after)))
    assert not any("collapsing" in line for line in verdict(changes(before, before)))
