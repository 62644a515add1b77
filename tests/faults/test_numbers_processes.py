"""Two real processes (gloo; DDP and FSDP 2): what one of them sees in its rows, both act upon."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from holdfast.errors import NonFiniteError, SpikeError
from holdfast.training.lean_trainer import LeanTrainer
from tests.faults.poison import poison
from tests.faults.runs import run, trainer_of
from tests.faults.test_resume_processes import HALF, SHARED, in_two

GUILTY = 1  # the process whose rows show the fault


def own_part(tensor: Any) -> Tensor:
    """Of a tensor that is shared out, this process's part."""
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach().clone()


class Unchanged(TrainerCallback):
    """The steps that changed no weight and no moment."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._before: list[Tensor] = []

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        moments = [value for own in optimizer.state.values() for value in own.values()]
        now = [own_part(tensor) for tensor in [*model.parameters(), *moments]]
        if len(now) == len(self._before) and all(map(torch.equal, now, self._before)):
            self.steps.append(state.global_step)
        self._before = now


def guarded(kind: str, folder: Path, **changed: Any) -> LeanTrainer:
    settings = {"lora": kind == "sft", "save_strategy": "no", "logging_steps": 1, **HALF, **changed}
    return trainer_of(kind, folder, **settings)


@pytest.mark.parametrize("shared", SHARED)
def test_both_leave_the_step_out(tmp_path: Path, shared: str) -> None:
    def work(rank: int) -> None:
        for kind, fault in (("sft", "loss nan"), ("slime", "gradient nan")):
            unchanged = Unchanged()
            folder = tmp_path / kind
            trainer = guarded(kind, folder, on_nonfinite="skip", callbacks=[unchanged])
            if rank == GUILTY:
                poison(trainer, fault, [2], micro_batch=1)
            seen = run(trainer)
            assert unchanged.steps == [2]
            assert trainer._guard.skipped == 1
            assert [log["skipped_steps"] for log in seen.logs if "skipped_steps" in log] == [1] * 5
            report = json.loads((folder / "nonfinite-step-2.json").read_text())
            mine = [row["row_index"] for row in report["rows"] if row["process"] == rank]
            assert mine == [row for step, rows in seen.rows if step == 2 for row in rows]
            assert len(report["rows"]) == 6
            if fault == "loss nan":
                guilty = {
                    (row["process"], row["micro_batch"])
                    for row in report["rows"]
                    if row["loss_of_micro_batch"] == "nan"
                }
                assert guilty == {(GUILTY, 1)}
            else:
                assert report["gradients"]

    in_two(work, tmp_path / "said", SHARED[shared])


@pytest.mark.parametrize("shared", SHARED)
def test_both_stop(tmp_path: Path, shared: str) -> None:
    def work(rank: int) -> None:
        bad = guarded("slime", tmp_path / "nan")
        if rank == GUILTY:
            poison(bad, "loss inf", [3])
        with pytest.raises(NonFiniteError, match="step 3: the loss is inf. Its 2 rows: "):
            bad.train()
        far = guarded("slime", tmp_path / "far", on_spike="raise", max_steps=9)
        if rank == GUILTY:
            poison(far, "loss x1000", [8])
        with pytest.raises(SpikeError, match="step 8: the loss is .* and the gradient norm is "):
            far.train()

    in_two(work, tmp_path / "said", SHARED[shared])


class DamageOnePart(TrainerCallback):
    """Puts a NaN into one process's copy, or part, of a parameter."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 1 and self.rank == GUILTY:
            (damaged,) = (
                p for name, p in model.named_parameters() if name.endswith("layers.1.mlp.down_proj.weight")
            )
            with torch.no_grad():
                (damaged.to_local() if hasattr(damaged, "to_local") else damaged)[0, 0] = math.nan


@pytest.mark.parametrize("shared", SHARED)
def test_both_name_the_parameter(tmp_path: Path, shared: str) -> None:
    def work(rank: int) -> None:
        trainer = guarded("slime", tmp_path / "run", callbacks=[DamageOnePart(rank)])
        with pytest.raises(
            NonFiniteError, match="the parameter 'model.layers.1.mlp.down_proj.weight' is not finite"
        ):
            trainer.train()

    in_two(work, tmp_path / "said", SHARED[shared])
