"""Two real processes (gloo; DDP and FSDP 2): what one of them sees in its rows, both act upon."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from holdfast.errors import NonFiniteError, SpikeError
from holdfast.training.lean_trainer import LeanTrainer
from tests.faults.pair import run_pair
from tests.faults.poison import poison
from tests.faults.runs import little_to_collect, run, trainer_of
from tests.faults.test_resume_processes import HALF, SHARED

HERE = "tests.faults.test_numbers_processes"
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


# ---- what the two processes do, in a folder of their own


def leave_the_step_out(shared: str, rank: int) -> None:
    for kind, fault in (("sft", "loss nan"), ("slime", "gradient nan")):
        unchanged = Unchanged()
        folder = Path(f"skip-{shared}-{kind}").resolve()
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


def stop(shared: str, rank: int) -> None:
    bad = guarded("slime", Path(f"nan-{shared}").resolve())
    if rank == GUILTY:
        poison(bad, "loss inf", [3])
    with pytest.raises(NonFiniteError, match="step 3: the loss is inf. Its 2 rows: "):
        bad.train()
    far = guarded("slime", Path(f"far-{shared}").resolve(), on_spike="raise", max_steps=9)
    if rank == GUILTY:
        poison(far, "loss x1000", [8])
    with pytest.raises(SpikeError, match="step 8: the loss is .* and the gradient norm is "):
        far.train()


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


def name_the_parameter(shared: str, rank: int) -> None:
    trainer = guarded("slime", Path(f"damage-{shared}").resolve(), callbacks=[DamageOnePart(rank)])
    with pytest.raises(
        NonFiniteError, match="the parameter 'model.layers.1.mlp.down_proj.weight' is not finite"
    ):
        trainer.train()


DOING: dict[str, Callable[[str, int], None]] = {
    "leave_the_step_out": leave_the_step_out,
    "stop": stop,
    "name_the_parameter": name_the_parameter,
}


def both(what: str, shared: str) -> str:
    """Do it, as one of the two; what is to be seen is asserted there."""
    torch.set_num_threads(1)
    with SHARED[shared](), little_to_collect():
        DOING[what](shared, int(os.environ["RANK"]))
    return "seen"


CASES = [f"both {what} {shared}" for what in DOING for shared in SHARED]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two says of each case."""
    return run_pair(tmp_path_factory.mktemp("two"), [f"{HERE}:{case}" for case in CASES])


@pytest.mark.parametrize("case", CASES)
def test_both_act_upon_it(results: list[dict[str, Any]], case: str) -> None:
    assert [own[f"{HERE}:{case}"] for own in results] == ["seen", "seen"]
