"""Sums on the device, means at the log, and the file they go to."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.training.metrics import MetricSums, means
from holdfast.training.metrics_file import MetricsFile


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


def test_metrics_file_is_json_whatever_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.jsonl"
    callback = MetricsFile(path, "align")
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=3)
    callback.on_log(None, state, None, logs={"loss": float("nan"), "norm": torch.tensor(2.0), "epoch": 1})  # type: ignore[arg-type]
    callback.on_log(None, state, None, logs={"loss": 0.5})  # type: ignore[arg-type]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"stage": "align", "step": 3, "loss": None, "norm": 2.0, "epoch": 1}
    assert lines[1]["loss"] == 0.5
