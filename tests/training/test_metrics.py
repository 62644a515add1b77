"""Sums on the device, and means at the log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from holdfast.training.metrics import MetricSums, means
from holdfast.training.state_files import load_state, save_state


class OneProcess:
    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return tensor


def test_means_weigh_micro_batches_by_their_counts() -> None:
    sums = MetricSums()
    sums.add({"loss": (torch.tensor(6.0), 3), "kept": (torch.tensor(0.0), torch.tensor(0))})
    sums.add({"loss": (torch.tensor(2.0), 1)})
    flushed = sums.flush(OneProcess())
    assert flushed["loss"] == (8.0, 4.0)
    # 8 / 4, where the mean of the batches' means would be 2 by luck only; nothing counted is left out
    assert means(flushed) == {"loss": 2.0}
    assert sums.flush(OneProcess()) == {}


def test_many_small_values_lose_nothing() -> None:
    sums = MetricSums()
    for _ in range(10_000):
        sums.add({"x": (torch.tensor(0.1, dtype=torch.float32), 1)})
    assert means(sums.flush(OneProcess()))["x"] == pytest.approx(0.1, rel=1e-6)


def test_sums_go_on_where_they_stood(tmp_path: Path) -> None:
    sums = MetricSums()
    sums.add({"loss": (torch.tensor(0.1), torch.tensor(3)), "pairs": (torch.tensor(2.0), 7)})
    save_state({"sums": sums.state_dict()}, tmp_path / "sums")
    saved = load_state(tmp_path / "sums")["sums"]
    accelerator = OneProcess()
    again = MetricSums.of([saved], torch.device("cpu"))
    both = MetricSums.of([saved, saved], torch.device("cpu"))
    assert MetricSums.of([], torch.device("cpu")).flush(accelerator) == {}
    expected = sums.flush(accelerator)
    assert (
        again.flush(accelerator) == expected == {"loss": (float(np.float32(0.1)), 3.0), "pairs": (2.0, 7.0)}
    )
    assert both.flush(accelerator) == {name: (2 * a, 2 * b) for name, (a, b) in expected.items()}
