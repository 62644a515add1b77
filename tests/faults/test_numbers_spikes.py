"""A batch with a thousandfold loss: seen in its own step. Ordinary training: never."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import ConfigError, SpikeError
from holdfast.training.lean_trainer import LeanTrainer
from tests.faults.poison import poison
from tests.faults.runs import run, trainer_of
from tests.faults.test_numbers import same, steps_logged, watched, weights_and_moments, written

CASES = [
    ("sft", False, "loss x1000"),
    ("sft", True, "loss x1000"),
    ("slime", False, "loss x1000"),
    ("slime", True, "loss x1000"),
    ("slime", False, "gradient x100000"),
]


@pytest.mark.parametrize(("kind", "lora", "fault"), CASES)
def test_raise_stops_before_the_step(tmp_path: Path, kind: str, lora: bool, fault: str) -> None:
    trainer, seen = watched(kind, tmp_path, lora=lora, on_spike="raise", max_steps=10)
    poison(trainer, fault, [8], micro_batch=1)
    with pytest.raises(SpikeError) as raised:
        trainer.train()
    assert raised.value.exit_code == 3
    assert same(weights_and_moments(trainer), seen.after[7])
    assert str(raised.value).startswith("step 8: the ")
    report = written(trainer, "spike-step-8.json")
    measured = [name for name in ("loss", "gradient norm") if f"the {name} is " in report["what"]]
    assert measured == (["loss", "gradient norm"] if fault.startswith("loss") else ["gradient norm"])
    assert len(report["rows"]) == 6
    shares = {row["micro_batch"]: row["loss_of_micro_batch"] for row in report["rows"]}
    assert sum(shares.values()) == pytest.approx(report["loss"], rel=1e-6)
    assert (max(shares, key=lambda number: shares[number]) == 1) or fault.startswith("gradient")


def test_warn_goes_on_and_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer, seen = watched("slime", tmp_path, lora=False, max_steps=12)
    poison(trainer, "loss x1000", [7, 11])
    trainer.train()
    assert [log.get("spikes") for log in steps_logged(trainer)] == [None] * 6 + [1] * 4 + [2] * 2
    assert not same(seen.after[7], seen.after[6]), "a warning leaves the step as it is"
    assert {path.name for path in tmp_path.glob("spike-*")} == {"spike-step-7.json", "spike-step-11.json"}
    warnings = [r.getMessage() for r in caplog.records if r.name == "holdfast.training.guards"]
    assert [text.split(":")[0] for text in warnings] == ["step 7", "step 11"]


def test_off_looks_for_none(tmp_path: Path) -> None:
    trainer, _ = watched("sft", tmp_path, lora=False, on_spike="off", max_steps=10)
    poison(trainer, "loss x1000", [8])
    trainer.train()
    assert not any("spikes" in log for log in steps_logged(trainer))
    assert not list(tmp_path.glob("spike-*"))


@pytest.mark.parametrize("stop", [4, 7, 8, 9])
def test_a_resumed_run_finds_the_same_spikes(tmp_path: Path, stop: int) -> None:
    """Whether the spike is before the checkpoint or after: with fewer steps behind it the last would be none."""

    def trainer(folder: str, **changed: Any) -> LeanTrainer:
        made = trainer_of("slime", tmp_path / folder, lora=False, max_steps=10, **changed)
        poison(made, "loss x1000", [8, 9])
        return made

    whole = run(trainer("run", save_total_limit=None))
    assert whole.state["guard"]["spikes"] == 2
    (tmp_path / "resumed").mkdir()
    (tmp_path / "resumed" / "metrics.jsonl").write_text((tmp_path / "run" / "metrics.jsonl").read_text())
    run(trainer("resumed", save_strategy="no"), tmp_path / "run" / f"checkpoint-{stop}").require_same(whole)
    for step in range(stop + 1, 11):
        before, after = (tmp_path / folder / f"spike-step-{step}.json" for folder in ("run", "resumed"))
        assert before.exists() == after.exists() == (step in (8, 9))
        if before.exists():
            assert json.loads(before.read_text()) == json.loads(after.read_text())


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        # from scratch: the loss falls from ln V to next to nothing; one row a step
        ("sft", {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 120}),
        ("sft", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 60}),
        # far too high a rate: the loss rises, and never heals
        ("sft", {"learning_rate": 0.3, "max_steps": 40, "gradient_accumulation_steps": 1}),
        # pairs told apart until hardly one has a gradient left
        ("slime", {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 100}),
        ("slime", {"objective": "dpo", "gradient_accumulation_steps": 1, "max_steps": 80}),
        ("slime", {"objective": "slic", "gradient_accumulation_steps": 1, "max_steps": 80}),
        # nothing happens at all
        (
            "slime",
            {"objective": "dpo", "learning_rate": 0.0, "max_steps": 20, "gradient_accumulation_steps": 1},
        ),
    ],
    ids=["one row", "from scratch", "diverging", "slime", "dpo", "slic", "constant"],
)
def test_ordinary_runs_have_none(tmp_path: Path, kind: str, changed: dict[str, Any]) -> None:
    settings = {"on_spike": "raise", "save_strategy": "no", "lr_scheduler_type": "constant", **changed}
    trainer = trainer_of(kind, tmp_path, lora=False, model={"attention_dropout": 0.0}, **settings)
    trainer.train()
    assert trainer._guard.spikes == 0
    seen = trainer._guard.state_dict()["detector"]
    assert len(seen["loss"]["values"]) == changed["max_steps"]
    assert len(seen["grad_norm"]["values"]) >= 0.9 * changed["max_steps"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be one of raise, skip, not 'ignore'"),
        ({"on_spike": "skip"}, "on_spike must be one of warn, raise, off, not 'skip'"),
        ({"on_spike": False}, "on_spike must be one of warn, raise, off, not False"),
        ({"dataset_num_proc": 100_000}, "dataset_num_proc must be from 1 to .* not 100000"),
        ({"dataloader_num_workers": 100_000}, "dataloader_num_workers must be from 0 to .* not 100000"),
        (
            {"per_device_train_batch_size": 10**20},
            "per_device_train_batch_size must be from 1 to 1000000, not 1",
        ),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be from 1 to 1000000, not 0"),
        ({"save_total_limit": -1}, "save_total_limit must be at least 1, not -1"),
        ({"dataloader_persistent_workers": True}, "set dataloader_num_workers too"),
        ({"spike_window": 10**20}, "spike_window must be from 5 to 10000, not 1"),
        ({"spike_threshold": 0.5}, "spike_threshold must be at least 1, not 0.5"),
        ({"spike_window": 2}, "spike_window must be from 5 to 10000, not 2"),
    ],
)
def test_settings_out_of_bounds(tmp_path: Path, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_of("sft", tmp_path, lora=False, **setting)
