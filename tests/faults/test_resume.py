"""A run that is stopped at any step and resumed is the run it would have been: every weight, moment, random number,
row and metric, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from holdfast.errors import CheckpointError, ConfigError, Interrupted
from holdfast.training.lean_trainer import LeanTrainer
from tests.faults.runs import STEPS, run, trainer_of
from tests.training.conftest import rows

pytestmark = pytest.mark.usefixtures("little_garbage")

STILL = {"attention_dropout": 0.0}


class Crash(Exception):
    """Stands for whatever ends a process."""


class CrashAt(TrainerCallback):
    """Ends a run while it is at work on a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            raise Crash


@pytest.mark.parametrize(
    ("kind", "lora", "schedule"),
    [
        ("sft", True, {"eval_strategy": "epoch", "eval_on_start": True}),
        ("sft", False, {"eval_strategy": "steps", "eval_steps": 2, "lr_scheduler_type": "cosine"}),
        (
            "slime",
            True,
            {"eval_strategy": "steps", "eval_steps": 3, "logging_steps": 5, "max_grad_norm": 1.0},
        ),
        ("slime", False, {"eval_strategy": "epoch", "logging_strategy": "epoch", "optim": "adafactor"}),
    ],
)
def test_stopped_at_every_step(tmp_path: Path, kind: str, lora: bool, schedule: dict[str, Any]) -> None:
    held_out: dict[str, Any] = {"evaluate": rows(20)[ROWS_HELD_OUT:], **schedule}
    whole = run(trainer_of(kind, tmp_path / "whole", lora=lora, **held_out))
    assert [step for step, _ in whole.rows] == [1, 1, 1, 2, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6]
    never_saved = run(trainer_of(kind, tmp_path / "never", lora=lora, save_strategy="no", **held_out))
    never_saved.require_same(whole)
    for step in range(1, STEPS + 1):
        folder = tmp_path / f"from-{step}"
        folder.mkdir()
        # as if more had been done after the checkpoint
        shutil.copy(tmp_path / "whole" / "metrics.jsonl", folder)
        resumed = trainer_of(kind, folder, lora=lora, save_strategy="no", **held_out)
        after = run(resumed, tmp_path / "whole" / f"checkpoint-{step}")
        after.require_same(whole)
        assert after.rows == [row for row in whole.rows if row[0] > step]


ROWS_HELD_OUT = 14


@pytest.mark.parametrize(
    ("kind", "lora", "settings"),
    [
        ("sft", False, {"save_strategy": "epoch", "eval_strategy": "epoch"}),
        ("slime", True, {"save_steps": 2, "max_steps": 5, "eval_strategy": "epoch"}),
    ],
)
def test_stopped_three_times_in_a_row(
    tmp_path: Path, kind: str, lora: bool, settings: dict[str, Any]
) -> None:
    held_out: dict[str, Any] = {"evaluate": rows(20)[ROWS_HELD_OUT:], **settings}
    whole = run(trainer_of(kind, tmp_path / "whole", lora=lora, **held_out))
    for crash in (2, 4, 5):
        stopped = trainer_of(kind, tmp_path / "run", lora=lora, callbacks=[CrashAt(crash)], **held_out)
        with pytest.raises(Crash):
            stopped.train(resume_from_checkpoint="auto")
    run(trainer_of(kind, tmp_path / "run", lora=lora, **held_out), "auto").require_same(whole)
    # once more, of a run that is finished: nothing is left to do, and nothing changes
    run(trainer_of(kind, tmp_path / "run", lora=lora, **held_out), True).require_same(whole)


def test_rows_grouped_by_length_and_another_seed_for_them(tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_sampling_strategy": "group_by_length", "data_seed": 7}
    whole = run(trainer_of("sft", tmp_path / "whole", lora=True, **options))
    first, second = whole.rows[:7], whole.rows[7:]
    assert sorted(row for _, batch in first for row in batch) == list(range(14))
    assert [batch for _, batch in first] != [batch for _, batch in second]
    for step in (2, 4):
        resumed = trainer_of("sft", tmp_path / "resumed", lora=True, **options)
        run(resumed, tmp_path / "whole" / f"checkpoint-{step}").require_same(whole)


def test_micro_batches_stay_as_small_as_they_had_to_be(tmp_path: Path) -> None:
    def cut(trainer: LeanTrainer) -> None:
        assert trainer._halving is not None
        trainer._halving.parts = 2

    whole_trainer = trainer_of("sft", tmp_path / "whole", lora=True, auto_find_batch_size=True)
    cut(whole_trainer)
    whole = run(whole_trainer)
    resumed = trainer_of("sft", tmp_path / "resumed", lora=True, auto_find_batch_size=True)
    run(resumed, tmp_path / "whole" / "checkpoint-3").require_same(whole)
    assert resumed._halving is not None
    assert resumed._halving.parts == 2


class Improving(TrainerCallback):
    """Makes the held-out loss what a test wants it to be."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        metrics["eval_loss"] = self.losses[state.global_step - 1]


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "evaluate": rows(20)[ROWS_HELD_OUT:],
}


@pytest.mark.parametrize("lora", [True, False])
def test_the_best_model_is_kept_and_loaded(tmp_path: Path, lora: bool) -> None:
    losses = [5.0, 2.0, 3.0, 4.0, 5.0, 6.0]

    def trainer(folder: str) -> LeanTrainer:
        return trainer_of(
            "sft", tmp_path / folder, lora=lora, callbacks=[Improving(losses)], save_total_limit=1, **BEST
        )

    weights: dict[str, torch.Tensor] = {}

    class Remember(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                weights.update({n: t.clone() for n, t in whole.model.state_dict().items()})

    whole = trainer("whole")
    whole.add_callback(Remember())
    expected = run(whole)
    folder = tmp_path / "whole"
    assert whole.state.best_model_checkpoint == str(folder / "checkpoint-2")
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-6"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.model.state_dict().items())

    stopped = trainer("run")
    stopped.add_callback(CrashAt(5))
    with pytest.raises(Crash):
        stopped.train()
    (tmp_path / "run").rename(tmp_path / "moved")
    run(trainer("moved"), True).require_same(expected)


def test_patience_counts_across_a_stop(tmp_path: Path) -> None:
    losses = [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]

    def trainer(folder: str) -> LeanTrainer:
        patience = EarlyStoppingCallback(early_stopping_patience=3)
        return trainer_of(
            "sft", tmp_path / folder, lora=True, callbacks=[Improving(losses), patience], **BEST
        )

    whole = run(trainer("whole"))
    assert whole.rows[-1][0] == 4
    stopped = trainer("run")
    stopped.add_callback(CrashAt(4))
    with pytest.raises(Crash):
        stopped.train()
    run(trainer("run"), True).require_same(whole)
    run(trainer("run"), True).require_same(whole)  # it had come to its end


def test_the_best_alone_is_saved_where_that_is_asked(tmp_path: Path) -> None:
    losses = [5.0, 2.0, 3.0, 1.0, 5.0, 6.0]
    trainer = trainer_of(
        "sft", tmp_path / "run", lora=True, callbacks=[Improving(losses)], **BEST | {"save_strategy": "best"}
    )
    trainer.train()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == [
        f"checkpoint-{step}" for step in (1, 2, 4)
    ]


def test_what_may_change_on_the_way(tmp_path: Path) -> None:
    """How often to log, to save and to evaluate; how a global batch is cut, also where it may be cut further."""
    same: dict[str, Any] = {"lora": True, "max_steps": 6, "model": STILL, "adapter": {"dropout": 0.0}}
    whole = run(trainer_of("sft", tmp_path / "run", save_steps=2, auto_find_batch_size=True, **same))
    changed = {
        "logging_steps": 1,
        "save_steps": 3,
        "gradient_accumulation_steps": 6,
        "auto_find_batch_size": True,
    }
    resumed = trainer_of("sft", tmp_path / "other", per_device_train_batch_size=1, **same, **changed)
    after = run(resumed, tmp_path / "run" / "checkpoint-2")
    taken = after.rows
    assert [len(batch) for _, batch in taken] == [1] * 2 + [1] * 14
    assert rows_by_step(taken) == {step: rows for step, rows in rows_by_step(whole.rows).items() if step > 2}
    for name in (name for name in whole.state if name.startswith("weights ")):
        torch.testing.assert_close(after.state[name], whole.state[name], rtol=1e-4, atol=1e-6)
    assert [log["step"] for log in resumed.state.log_history if "loss" in log] == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in (tmp_path / "other").glob("checkpoint-*")) == [
        "checkpoint-3",
        "checkpoint-6",
    ]


def rows_by_step(taken: list[tuple[int, list[int]]]) -> dict[int, list[int]]:
    """The rows of each global batch, however it was cut."""
    found: dict[int, list[int]] = {}
    for step, batch in taken:
        found[step] = sorted([*found.get(step, []), *batch])
    return found


@pytest.mark.parametrize("step", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_loaders_with_processes_of_their_own(tmp_path: Path, step: int) -> None:
    """They draw random numbers when they begin, persistent ones once a run."""
    loading = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "eval_strategy": "epoch"}
    trainer: Any = lambda folder, **more: trainer_of(  # noqa: E731
        "sft", tmp_path / folder, lora=True, evaluate=rows(4), **loading, **more
    )
    whole = run(trainer("whole"))
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "whole" / "metrics.jsonl", tmp_path / "run")
    run(trainer("run", save_strategy="no"), tmp_path / "whole" / f"checkpoint-{step}").require_same(whole)


def test_stopped_without_checkpoints_of_its_own_in_a_folder_with_anothers(tmp_path: Path) -> None:
    """The one that the interruption writes is that run's newest; the other run's are kept aside."""
    folder = tmp_path / "run"
    trainer_of("sft", folder, lora=True, save_steps=2).train()

    class Told(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    again: dict[str, Any] = {
        "lora": True,
        "save_strategy": "no",
        "save_total_limit": 1,
        "learning_rate": 1e-3,
    }
    with pytest.raises(Interrupted, match="checkpoint-1'"):
        trainer_of("sft", folder, callbacks=[Told()], **again).train()
    names = sorted(path.name for path in folder.glob("checkpoint-*"))
    assert names == ["checkpoint-1", *(f"checkpoint-{step}.before-1" for step in (2, 4, 6))]
    resumed = trainer_of("sft", folder, **again)
    assert run(resumed, True).rows[0][0] == 2


def test_rows_that_are_dropped_are_a_matter_of_the_cut(tmp_path: Path) -> None:
    dropping = {"lora": True, "dataloader_drop_last": True}
    trainer_of("sft", tmp_path / "run", max_steps=1, **dropping).train()
    other = trainer_of(
        "sft",
        tmp_path / "run",
        max_steps=1,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=1,
        **dropping,
    )
    with pytest.raises(CheckpointError, match="rows_at_once: 2 in the checkpoint, 6 now"):
        other.train(resume_from_checkpoint=True)


def test_an_engine_without_checkpoints_begins_anew(tmp_path: Path) -> None:
    """As a job script does that always says `--resume`."""
    trainer = trainer_of("sft", tmp_path / "run", lora=True, save_strategy="no", max_steps=1)
    trainer._why_no_checkpoints = lambda: "DeepSpeed writes its state as pickles"  # type: ignore[method-assign]
    trainer.train(resume_from_checkpoint="auto")
    assert trainer.state.global_step == 1
    trainer_of("sft", tmp_path / "run", lora=True, max_steps=2).train()
    with pytest.raises(ConfigError, match="pickles"):
        trainer.train(resume_from_checkpoint="auto")


def test_settings_that_checkpoints_cannot_follow(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="push_to_hub: training writes to disk alone"):
        trainer_of("sft", tmp_path, lora=True, push_to_hub=True)
    with pytest.raises(ConfigError, match="save_on_each_node"):
        trainer_of("sft", tmp_path, lora=True, save_on_each_node=True).train()
    with pytest.raises(ConfigError, match="ignore_data_skip"):
        trainer_of("sft", tmp_path, lora=True, ignore_data_skip=True).train(resume_from_checkpoint="auto")
    trained = trainer_of("sft", tmp_path, lora=True)
    norm = next(name for name, _ in trained.model.named_parameters() if name.endswith("norm.weight"))
    trained.model.get_parameter(norm).requires_grad_(True)
    with pytest.raises(ConfigError, match=f"'{norm}' is trained, and is not in the adapter"):
        trained.train()
    stranger = trainer_of("sft", tmp_path, lora=True)
    stranger.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ConfigError, match="SGD steps tensors that are no parameters of the model"):
        stranger.train()
    engine = trainer_of("sft", tmp_path, lora=True)
    engine.is_deepspeed_enabled = True
    with pytest.raises(
        ConfigError, match="DeepSpeed writes its state as pickles: use FSDP 2 .* save_strategy: no"
    ):
        engine.train()
    assert list(tmp_path.glob("checkpoint-*")) == []
