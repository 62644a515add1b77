"""A callback that appends every log to `metrics.jsonl`, one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from holdfast.files import replacing


class MetricsFile(TrainerCallback):
    """Append logs to `path` as they happen, each with its stage and step.

    A value that is not finite is written as null: NaN is not JSON.

    When training begins, the stage's lines become those that its checkpoint remembers, and none without one: what was
    logged after it is gone, as it will be logged again, and what a crash has cut off is back.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the file where the checkpoint stands, on the main process only."""
        if not state.is_world_process_zero:
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        own = [at for at, line in enumerate(lines) if _stage_of(line) in (self.stage, None)]
        if not own and not state.log_history:
            return
        first = own[0] if own else len(lines)
        dropped = set(own)
        before = lines[:first]
        after = [line for at, line in enumerate(lines) if at > first and at not in dropped]
        remembered = [self._line(log["step"], log) for log in state.log_history]
        with replacing(self.path) as beside:
            beside.write_text("".join([*before, *remembered, *after]), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line and flush it, on the main process only."""
        if not state.is_world_process_zero or logs is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self._line(state.global_step, logs))

    def _line(self, step: int, logs: Mapping[str, Any]) -> str:
        values = {name: _plain(value) for name, value in logs.items() if name != "step"}
        return json.dumps({"stage": self.stage, "step": step, **values}, allow_nan=False) + "\n"


def _stage_of(line: str) -> str | None:
    """The stage of a line; None of one that was cut off."""
    try:
        return str(json.loads(line)["stage"]) if line.endswith("\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
