"""Memory runs out at a step: said with the micro-batch's size, or the micro-batch is cut and the step done again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.errors import ModelError
from holdfast.training.halving import does_not_fit, size_of
from holdfast.training.lean_trainer import LeanTrainer
from tests.faults.runs import run, trainer_of
from tests.faults.test_numbers import watched, weights_and_moments

KINDS = [("sft", False), ("sft", True), ("slime", False), ("slime", True)]
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.5 GiB."


class _FullInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(CUDA)


def fill_memory(
    trainer: LeanTrainer, full: Callable[[int, int], bool], error: Exception | None = None
) -> list[tuple[int, int]]:
    """Have the model's forward run out of memory where `full(step, rows)`; grows by each forward's step and rows.

    Without an `error`, it is the backward that fails.
    """
    seen: list[tuple[int, int]] = []
    measure = trainer.measure

    def measured(model: Any, batch: Any, counts: Any) -> Any:
        step, count = trainer.state.global_step + 1, len(batch["row_index"])
        seen.append((step, count))
        if not full(step, count):
            return measure(model, batch, counts)
        if error is not None:
            raise error
        micro = measure(model, batch, counts)
        return type(micro)(_FullInBackward.apply(micro.loss), micro.kept, micro.metrics)

    trainer.measure = measured  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(CUDA), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), None],
    ids=["device", "machine", "backward"],
)
def test_the_message_says_what_did_not_fit(tmp_path: Path, error: Exception | None) -> None:
    trainer, seen = watched("slime", tmp_path, lora=False, model={"attention_dropout": 0.0})
    assert trainer.padding_free
    fill_memory(trainer, lambda step, rows: step == 4, error)
    batches: list[Any] = []
    step = trainer.training_step
    trainer.training_step = lambda model, batch, *a: (batches.append(batch), step(model, batch, *a))[1]
    with pytest.raises(ModelError) as raised:
        trainer.train()
    lengths = [sum(lengths) for lengths in batches[-1]["row_lengths"]]
    assert str(raised.value).startswith(
        f"step 4: out of memory at a micro-batch of 2 rows, {sum(lengths)} tokens in all, the longest row "
        f"{max(lengths)} tokens. Set `auto_find_batch_size: true`: "
    )
    assert "keeps the global batch and the order of rows" in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
    now = weights_and_moments(trainer)
    assert all(torch.equal(now[name], value) for name, value in seen.after[3].items())


def test_outside_of_the_micro_batches_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer makes its state in its first step."""

    def full(self: Any, closure: Any = None) -> None:
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    trainer, _ = watched("slime", tmp_path, lora=False, optim="adamw_torch")
    with pytest.raises(
        ModelError, match="step 1: out of memory outside of the micro-batches: in the optimizer"
    ):
        trainer.train()


def test_padded_rows_are_said_to_be(tmp_path: Path) -> None:
    trainer, _ = watched("sft", tmp_path, lora=False, padding_free=False)
    fill_memory(trainer, lambda step, rows: step == 2, torch.OutOfMemoryError(CUDA))
    with pytest.raises(ModelError) as raised:
        trainer.train()
    found = re.search(
        r"2 rows, (\d+) tokens in all, the longest row (\d+) tokens, padding included", str(raised.value)
    )
    assert found is not None
    assert int(found[1]) == 2 * int(found[2])


@pytest.mark.parametrize(("kind", "lora"), KINDS)
def test_the_checkpoint_before_goes_on(tmp_path: Path, kind: str, lora: bool) -> None:
    """... and on a machine with more memory the run is the one it would have been."""
    whole = run(trainer_of(kind, tmp_path / "whole", lora=lora, save_strategy="no"))
    stopped = trainer_of(kind, tmp_path / "run", lora=lora)
    fill_memory(stopped, lambda step, rows: step == 5, torch.OutOfMemoryError(CUDA))
    with pytest.raises(ModelError, match="step 5: out of memory"):
        stopped.train()
    resumed = trainer_of(kind, tmp_path / "run", lora=lora)
    after = run(resumed, "auto")
    assert {step for step, _ in after.rows} == {5, 6}
    after.require_same(whole)


@pytest.mark.parametrize(
    ("kind", "lora", "late"),
    [
        pytest.param(kind, lora, late, marks=[pytest.mark.soak] if late == lora else [])
        for kind, lora in KINDS
        for late in (False, True)
    ],
)
def test_cutting_keeps_the_global_batch_and_the_order(
    tmp_path: Path, kind: str, lora: bool, late: bool
) -> None:
    """Without dropout, which would be drawn anew, training is the same but for rounding."""
    still = {"model": {"attention_dropout": 0.0}, "adapter": {"dropout": 0.0}, "save_strategy": "no"}
    whole = run(trainer_of(kind, tmp_path / "whole", lora=lora, **still))
    cut = trainer_of(kind, tmp_path / "cut", lora=lora, auto_find_batch_size=True, **still)
    error = None if late else torch.OutOfMemoryError(CUDA)
    seen = fill_memory(cut, lambda step, rows: step >= 3 and rows > 1, error)
    after = run(cut)
    assert after.rows == whole.rows, "the micro-batches as drawn: rows and order"
    assert cut._halving.parts == 2
    assert {rows for step, rows in seen if step >= 4} == {1}
    assert [log["num_tokens"] for log in after.logs if "num_tokens" in log] == [
        log["num_tokens"] for log in whole.logs if "num_tokens" in log
    ]
    for mine, other in zip(after.logs, whole.logs, strict=True):
        for name in ("loss", "grad_norm"):
            if name in mine:
                assert mine[name] == pytest.approx(other[name], rel=1e-4)
    assert cut.state.max_steps == cut.state.global_step == 6


def test_a_cut_run_is_resumed_cut(tmp_path: Path) -> None:
    """Bit for bit: what did not fit is not tried again."""

    def limited(folder: str, **changed: Any) -> LeanTrainer:
        made = trainer_of("slime", tmp_path / folder, lora=False, auto_find_batch_size=True, **changed)
        fill_memory(made, lambda step, rows: step >= 2 and rows > 1, torch.OutOfMemoryError(CUDA))
        return made

    whole = run(limited("run"))
    (tmp_path / "resumed").mkdir()
    (tmp_path / "resumed" / "metrics.jsonl").write_text((tmp_path / "run" / "metrics.jsonl").read_text())
    resumed = limited("resumed", save_strategy="no")
    run(resumed, tmp_path / "run" / "checkpoint-3").require_same(whole)


def test_one_row_that_does_not_fit(tmp_path: Path) -> None:
    trainer = trainer_of("slime", tmp_path, lora=False, save_strategy="no", auto_find_batch_size=True)
    fill_memory(trainer, lambda step, rows: step == 2, torch.OutOfMemoryError(CUDA))
    with pytest.raises(ModelError, match=r"one row alone does not fit .*the longest row \d+ tokens"):
        trainer.train()


def test_what_is_out_of_memory() -> None:
    assert does_not_fit(torch.OutOfMemoryError("anything"))
    assert does_not_fit(RuntimeError(CUDA))
    assert not does_not_fit(RuntimeError("CUDA error: device-side assert triggered"))
    assert not does_not_fit(ValueError(CUDA))


def test_sizes_by_hand() -> None:
    flat = {
        "input_ids": torch.zeros(1, 14, dtype=torch.int64),
        "row_lengths": ((2, 3, 1), (4, 4, 0)),
        "row_index": torch.tensor([5, 9]),
    }
    assert size_of(flat) == "2 rows, 14 tokens in all, the longest row 8 tokens"
    padded = {"input_ids": torch.zeros(3, 7, dtype=torch.int64), "row_index": torch.tensor([1, 2, 3])}
    assert size_of(padded) == "3 rows, 21 tokens in all, the longest row 7 tokens, padding included"
