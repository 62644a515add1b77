"""StepGuard by itself: what it admits, counts, writes and remembers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from holdfast import SFTConfig, SFTTrainer
from holdfast.errors import NonFiniteError
from holdfast.training.guards import MOST_OVERFLOWS_IN_A_ROW, StepGuard
from tests.training.conftest import rows


@pytest.fixture
def trainer(model_of: Any, tokenizer: Any, arguments: dict[str, Any]) -> Any:
    return SFTTrainer(model_of(), SFTConfig(**arguments), rows(8), processing_class=tokenizer)


def guard_of(trainer: Any, losses: list[float], row_numbers: list[list[int]], **settings: Any) -> StepGuard:
    """A guard that has seen a global batch."""
    guard = StepGuard(SimpleNamespace(**vars(trainer.args) | settings))
    guard.begin([torch.tensor(numbers) for numbers in row_numbers])
    for loss in losses:
        guard.add(torch.tensor(loss), torch.tensor(loss))
    return guard


def test_a_good_step(trainer: Any) -> None:
    guard = guard_of(trainer, [1.5, 0.5], [[0], [1]])
    assert guard.admits(trainer, torch.tensor(3.0)) == (True, 3.0)
    assert guard.counts() == {}
    assert guard.state_dict()["detector"]["loss"]["values"] == [2.0], "of the global batch, by its parts"
    assert not list(Path(trainer.args.output_dir).glob("*.json"))


def test_a_norm_that_nobody_knows(trainer: Any) -> None:
    guard = guard_of(trainer, [1.5], [[0]])
    assert guard.admits(trainer, None) == (True, None)
    assert guard.state_dict()["detector"]["grad_norm"]["values"] == []


def test_the_report_by_hand(trainer: Any) -> None:
    guard = guard_of(trainer, [1.5, math.nan], [[2, 0], [7]], on_nonfinite="skip")
    assert guard.admits(trainer, torch.tensor(math.inf)) == (False, math.inf)
    report = json.loads((Path(trainer.args.output_dir) / "nonfinite-step-1.json").read_text())
    ids = trainer.train_dataset["row_id"]
    assert report == {
        "step": 1,
        "what": "the loss is nan",
        "loss": "nan",
        "grad_norm": "inf",
        "parameters": [],
        "gradients": [],
        "rows": [
            {
                "row_index": row,
                "process": 0,
                "micro_batch": number,
                "loss_of_micro_batch": share,
                "row_id": ids[row],
                "where": f"dataset row {row + 1}",
            }
            for row, number, share in ((2, 0, 1.5), (0, 0, 1.5), (7, 1, "nan"))
        ],
    }
    assert guard.counts() == {"skipped_steps": 1.0}


def test_a_scaler_looks_after_gradients_that_overflow(trainer: Any) -> None:
    """float16: it leaves such a step out itself, and scales less. The loss is still the guard's."""
    trainer.accelerator.scaler = object()
    guard = guard_of(trainer, [2.0], [[0]], on_spike="raise")
    for _ in range(20):
        assert guard.admits(trainer, torch.tensor(math.inf)) == (True, math.inf)
    assert guard.state_dict()["detector"]["grad_norm"]["values"] == []
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        guard_of(trainer, [math.nan], [[0]]).admits(trainer, torch.tensor(1.0))


def test_a_scaler_that_does_not_help(trainer: Any) -> None:
    """Halved forty times its scale is nothing: the gradient is broken, and the run must not end as if trained."""
    trainer.accelerator.scaler = object()
    guard = guard_of(trainer, [2.0], [[0]])
    for _ in range(MOST_OVERFLOWS_IN_A_ROW - 1):
        guard.admits(trainer, torch.tensor(math.inf))
    going_on = guard_of(trainer, [2.0], [[0]])
    going_on.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    for one in (guard, going_on):
        with pytest.raises(NonFiniteError, match="not finite"):
            one.admits(trainer, torch.tensor(math.nan))
    assert guard_of(trainer, [2.0], [[0]]).admits(trainer, torch.tensor(1.0)) == (True, 1.0)


def test_a_report_that_cannot_be_written_hides_nothing(trainer: Any, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file where the folder should be")
    trainer.args.output_dir = str(taken / "out")
    guard = guard_of(trainer, [math.inf], [[3]])
    with pytest.raises(
        NonFiniteError, match=r"the loss is inf\. Its 1 row: dataset row 4 \(which could not be written"
    ):
        guard.admits(trainer, torch.tensor(1.0))


def test_rows_without_ids_or_places_are_named_by_number(trainer: Any) -> None:
    trainer.train_dataset = trainer.train_dataset.remove_columns("row_id")
    trainer.prepared["train"] = type(trainer.prepared["train"])(trainer.train_dataset, {}, (), 0)
    guard = guard_of(trainer, [math.nan], [[3, 5]])
    with pytest.raises(NonFiniteError, match=r"Its 2 rows: 3, 5 \(all in "):
        guard.admits(trainer, torch.tensor(1.0))


def test_its_state_is_plain_and_complete(trainer: Any) -> None:
    guard = guard_of(trainer, [2.0], [[0]], on_nonfinite="skip")
    for step in range(9):
        guard.begin([torch.tensor([0])])
        value = math.nan if step in (3, 8) else 2000.0 if step == 7 else 2.0
        guard.add(torch.tensor(value), torch.tensor(value))
        guard.admits(trainer, torch.tensor(value))
    state = json.loads(json.dumps(guard.state_dict(), allow_nan=False))
    assert {name: state[name] for name in ("skipped", "skipped_in_a_row", "spikes")} == {
        "skipped": 2,
        "skipped_in_a_row": 1,
        "spikes": 1,
    }
    other = guard_of(trainer, [], [])
    other.load_state_dict(state)
    assert other.state_dict() == guard.state_dict()
    assert other.counts() == {"skipped_steps": 2.0, "spikes": 1.0}
