"""`metrics.jsonl`: JSON whatever is logged, and its lines when a stage begins, anew or from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import TrainerState

from holdfast.training.metrics_file import MetricsFile


def test_metrics_file_is_json_whatever_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.jsonl"
    callback = MetricsFile(path, "align")
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=3)
    callback.on_log(None, state, None, logs={"loss": float("nan"), "norm": torch.tensor(2.0), "epoch": 1})  # type: ignore[arg-type]
    callback.on_log(None, state, None, logs={"loss": 0.5})  # type: ignore[arg-type]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"stage": "align", "step": 3, "loss": None, "norm": 2.0, "epoch": 1}
    assert lines[1]["loss"] == 0.5


def lines_after(file: Path, history: list[dict[str, Any]], stage: str = "sft") -> list[dict[str, Any]]:
    callback = MetricsFile(file, stage)
    state = TrainerState(log_history=history, is_world_process_zero=True)
    callback.on_train_begin(None, state, None)  # type: ignore[arg-type]
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_the_file_is_put_where_the_checkpoint_stands(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    own = [{"stage": "sft", "step": step, "loss": 1.0 / step} for step in (1, 2, 3)]
    other = {"stage": "align", "step": 1, "loss": 9.0}
    file.write_text("".join(json.dumps(line) + "\n" for line in (other, *own)) + '{"stage": "sft", "st')
    history = [{"loss": 1.0, "step": 1}, {"loss": 0.5, "step": 2}]
    assert lines_after(file, history) == [other, *own[:2]]
    # what a crash has cut off is back
    file.write_text(json.dumps(other) + "\n")
    assert lines_after(file, history) == [other, *own[:2]]
    file.unlink()
    assert lines_after(file, [*history, {"loss": float("nan"), "step": 3}])[-1] == {
        "stage": "sft",
        "step": 3,
        "loss": None,
    }


def test_a_stage_from_its_start_has_no_lines_yet(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"stage": "sft", "step": 1}\n{"stage": "align", "step": 1}\n')
    assert lines_after(file, []) == [{"stage": "align", "step": 1}]
    callback = MetricsFile(tmp_path / "other", "sft")
    callback.on_train_begin(
        None,  # type: ignore[arg-type]
        TrainerState(log_history=[{"step": 1}], is_world_process_zero=False),
        None,  # type: ignore[arg-type]
    )
    assert not (tmp_path / "other").exists()
