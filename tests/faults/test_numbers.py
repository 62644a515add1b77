"""Numbers that are not finite: named before they cost anything, and nothing is changed by them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from holdfast.errors import ConfigError, ModelError, NonFiniteError
from holdfast.models.tiny import tiny_model
from holdfast.training.guards import MOST_SKIPPED_IN_A_ROW
from holdfast.training.lean_trainer import LeanTrainer
from tests.faults.poison import poison
from tests.faults.runs import KINDS, STEPS, run, settings, shared_tokenizer, trainer_of
from tests.training.conftest import rows

# every trainer with a broken loss and with a broken gradient, and every fault
CASES = [
    ("sft", False, "loss nan"),
    ("sft", False, "gradient inf"),
    ("sft", True, "loss -inf"),
    ("sft", True, "gradient nan"),
    ("slime", False, "loss inf"),
    ("slime", False, "gradient nan"),
    ("slime", True, "loss nan"),
    ("slime", True, "gradient inf"),
]


def weights_and_moments(trainer: LeanTrainer) -> dict[str, Tensor]:
    """Copies of every parameter, buffer and tensor of the optimizer's state."""
    found = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    for number, state in trainer.optimizer.state_dict()["state"].items():
        found |= {f"{number} {key}": value.clone() for key, value in state.items()}
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit, and every number finite."""
    assert all(tensor.isfinite().all() for tensor in one.values())
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Snapshots(TrainerCallback):
    """Weights and moments at the end of each step."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.after: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.after[state.global_step] = weights_and_moments(self.trainer)


def watched(kind: str, folder: Path, **changed: Any) -> tuple[LeanTrainer, Snapshots]:
    seen = Snapshots()
    trainer = trainer_of(
        kind, folder, callbacks=[seen], **{"save_strategy": "no", "logging_steps": 1} | changed
    )
    seen.trainer = trainer
    return trainer, seen


def written(trainer: LeanTrainer, name: str) -> Any:
    return json.loads((Path(trainer.args.output_dir) / name).read_text())


def steps_logged(trainer: LeanTrainer) -> list[dict[str, Any]]:
    return [log for log in trainer.state.log_history if "grad_norm" in log]


@pytest.mark.parametrize(("kind", "lora", "fault"), CASES)
def test_raise_stops_before_the_step(tmp_path: Path, kind: str, lora: bool, fault: str) -> None:
    trainer, seen = watched(
        kind, tmp_path, lora=lora, save_strategy="steps", save_steps=1, save_total_limit=2
    )
    poison(trainer, fault, [4], micro_batch=1)
    with pytest.raises(NonFiniteError) as raised:
        trainer.train()
    assert raised.value.exit_code == 3
    assert same(weights_and_moments(trainer), seen.after[3])
    assert not same(seen.after[3], seen.after[2])
    message = str(raised.value)
    assert message.startswith("step 4: the loss is "), message
    report = written(trainer, "nonfinite-step-4.json")
    if fault.startswith("loss"):
        assert report["loss"] == fault.removeprefix("loss ")
        assert f"the loss is {fault.removeprefix('loss ')}." in message
    else:
        assert math.isfinite(report["loss"])
        assert not math.isfinite(float(report["grad_norm"]))
        trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert {*report["gradients"]} <= trained
        assert len(report["gradients"]) >= 0.9 * len(trained)
        assert (
            f"the gradient of '{report['gradients'][0]}' (and {len(report['gradients']) - 1} more)" in message
        )
    assert report["parameters"] == []
    # two checkpoints were to be kept, and the last two good ones are
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    for file in tmp_path.glob("checkpoint-*/*.safetensors"):
        assert all(
            tensor.isfinite().all() for tensor in load_file(file).values() if tensor.is_floating_point()
        )


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_one_gradient_is_named_alone(tmp_path: Path, max_grad_norm: float) -> None:
    """Clipping by a norm that is not finite would spoil them all."""
    trainer, _ = watched("sft", tmp_path, lora=True, max_grad_norm=max_grad_norm)
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.default.weight"

    def broken(gradient: Tensor) -> Tensor:
        return gradient.clone().fill_(math.inf) if trainer.state.global_step == 2 else gradient

    dict(trainer.model.named_parameters())[name].register_hook(broken)
    with pytest.raises(
        NonFiniteError, match=f"step 3: the loss is .*, but the gradient of '{name}' is not finite"
    ):
        trainer.train()
    assert written(trainer, "nonfinite-step-3.json")["gradients"] == [name]


@pytest.mark.parametrize("fault", ["loss nan", "gradient nan"])
def test_the_rows_of_the_batch_are_written_with_their_places(tmp_path: Path, fault: str) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(14)))
    trainer, _ = watched("slime", tmp_path / "run", lora=False, train=source)
    poison(trainer, fault, [2], micro_batch=2)
    with pytest.raises(NonFiniteError) as raised:
        trainer.train()
    report = written(trainer, "nonfinite-step-2.json")
    found = report["rows"]
    assert [row["micro_batch"] for row in found] == [0, 0, 1, 1, 2, 2]
    assert len({row["row_index"] for row in found}) == 6
    for row in found:
        # the n-th row of the file is its line n + 1, and the n-th of the data set
        assert row["where"] == f"{source}:{row['row_index'] + 1}"
        assert row["row_id"] == trainer.train_dataset[row["row_index"]]["row_id"]
        assert row["process"] == 0
    guilty = [not math.isfinite(float(row["loss_of_micro_batch"])) for row in found]
    assert guilty == [False] * 4 + [fault == "loss nan"] * 2
    assert f"Its 6 rows: {found[0]['where']}, " in str(raised.value)
    assert f"(all in '{tmp_path / 'run' / 'nonfinite-step-2.json'}')" in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "lora", "fault"),
    [*CASES[::2], *(pytest.param(*case, marks=pytest.mark.soak) for case in CASES[1::2])],
)
def test_skip_changes_nothing(tmp_path: Path, kind: str, lora: bool, fault: str) -> None:
    trainer, seen = watched(
        kind, tmp_path, lora=lora, on_nonfinite="skip", max_grad_norm=1.0 if lora else 0.0
    )
    poison(trainer, fault, [2, 5])
    output = trainer.train()
    unchanged = [step for step in range(2, STEPS + 1) if same(seen.after[step], seen.after[step - 1])]
    assert unchanged == [2, 5]
    logs = steps_logged(trainer)
    assert [log.get("skipped_steps") for log in logs] == [None, 1, 1, 1, 2, 2]
    # what was left out is missing, not zero; the norm is shown as it was
    assert [math.isfinite(log.get("loss", math.nan)) for log in logs] == [
        True,
        False,
        True,
        True,
        False,
        True,
    ]
    assert ["loss" in log for log in logs] == [True, False, True, True, False, True]
    if fault != "loss inf" and fault != "loss -inf":  # whose gradients are sound
        assert [math.isfinite(log["grad_norm"]) for log in logs] == ["loss" in log for log in logs]
    assert {path.name for path in tmp_path.glob("nonfinite-*")} == {
        "nonfinite-step-2.json",
        "nonfinite-step-5.json",
    }
    taken = [log["loss"] for log in logs if "loss" in log]
    assert output.training_loss == pytest.approx(sum(taken) / 4, rel=1e-6)


class WithoutGradients(TrainerCallback):
    """Takes the gradients of some steps away."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step + 1 in self.steps:
            model.zero_grad()


@pytest.mark.parametrize(("kind", "lora", "fault"), CASES[1::2])
def test_a_skipped_step_is_as_if_there_had_been_no_gradient(
    tmp_path: Path, kind: str, lora: bool, fault: str
) -> None:
    """The schedule, the order of rows and the random numbers go on as they would have."""
    skipping = trainer_of(kind, tmp_path / "skip", lora=lora, save_strategy="no", on_nonfinite="skip")
    poison(skipping, fault, [3])
    got = run(skipping)
    plain = trainer_of(
        kind, tmp_path / "plain", lora=lora, save_strategy="no", callbacks=[WithoutGradients([3])]
    )
    expected = run(plain)
    assert got.rows == expected.rows
    for picture in (got, expected):
        picture.state.pop("guard")
        picture.logs = picture.lines = []
        picture.loss = 0.0
    got.require_same(expected)


def test_means_over_several_steps_leave_the_skipped_one_out(tmp_path: Path) -> None:
    def logged(folder: str, **changed: Any) -> list[dict[str, Any]]:
        trainer, _ = watched("sft", tmp_path / folder, lora=False, on_nonfinite="skip", **changed)
        poison(trainer, "loss nan", [2, 3, 4])
        trainer.train()
        return steps_logged(trainer)

    single, double = logged("single"), logged("double", logging_steps=2, logging_first_step=False)
    assert [log["step"] for log in double] == [2, 4, 6]
    assert double[0]["loss"] == single[0]["loss"], "the mean of the one step that was taken"
    assert "loss" not in double[1]
    assert double[1]["tokens_per_second"] == 0
    assert [log["skipped_steps"] for log in double] == [1, 3, 3]
    assert double[2]["loss"] < max(single[4]["loss"], single[5]["loss"])
    assert double[2]["num_tokens"] == single[5]["num_tokens"]


def test_a_run_of_skipped_steps_alone_has_no_mean_loss(tmp_path: Path) -> None:
    trainer, seen = watched("slime", tmp_path, lora=False, on_nonfinite="skip", max_steps=3)
    start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    poison(trainer, "loss nan", [1, 2, 3])
    output = trainer.train()
    assert math.isnan(output.training_loss)
    assert same(seen.after[3], start), "no moments, and the weights of the start"
    # trained again it counts anew
    del trainer.measure, trainer.training_step
    assert math.isfinite(trainer.train().training_loss)
    assert trainer._guard.skipped == 0


def test_skipping_without_end_is_an_error(tmp_path: Path) -> None:
    trainer, seen = watched("sft", tmp_path, lora=False, on_nonfinite="skip", max_steps=20)
    poison(trainer, "gradient nan", range(3, 21))
    with pytest.raises(
        NonFiniteError, match=f"{MOST_SKIPPED_IN_A_ROW} steps in a row had to be left out"
    ) as raised:
        trainer.train()
    assert str(raised.value).startswith("step 12: ")
    assert same(weights_and_moments(trainer), seen.after[2])


def test_good_steps_between_make_no_row(tmp_path: Path) -> None:
    trainer, _ = watched("sft", tmp_path, lora=False, on_nonfinite="skip", max_steps=21)
    poison(trainer, "loss nan", [*range(1, 10), *range(11, 20)])
    trainer.train()
    assert trainer.state.global_step == 21
    assert steps_logged(trainer)[-1]["skipped_steps"] == 18


class Damage(TrainerCallback):
    """Puts a NaN into a parameter at the end of a step."""

    def __init__(self, name: str, step: int) -> None:
        self.name, self.step = name, step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            (parameter,) = (p for name, p in model.named_parameters() if name.endswith(self.name))
            with torch.no_grad():
                parameter.view(-1)[1] = math.nan


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize(
    ("kind", "lora", "name"),
    [
        ("sft", False, "model.layers.1.mlp.up_proj.weight"),
        ("slime", False, "model.norm.weight"),
        ("sft", True, "layers.0.self_attn.q_proj.lora_A.default.weight"),
        ("slime", True, "layers.0.mlp.down_proj.base_layer.weight"),  # frozen
    ],
)
def test_a_damaged_parameter_is_named_whatever_the_policy(
    tmp_path: Path, kind: str, lora: bool, name: str, policy: str
) -> None:
    trainer = trainer_of(
        kind, tmp_path, lora=lora, save_strategy="no", callbacks=[Damage(name, 2)], on_nonfinite=policy
    )
    with pytest.raises(NonFiniteError, match=f"step 3: the parameter '[^']*{name}' is not finite"):
        trainer.train()
    (found,) = written(trainer, "nonfinite-step-3.json")["parameters"]
    assert found.endswith(name)


@pytest.mark.parametrize("kind", ["sft", "slime"])
def test_a_damaged_model_is_refused_before_training(tmp_path: Path, kind: str) -> None:
    tokenizer = shared_tokenizer()
    model = tiny_model("qwen3", len(tokenizer), hidden_size=32)
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = math.inf
        model.model.norm.weight[0] = math.nan
    trainer_class, config_class = KINDS[kind]
    message = r"'model.layers.1.input_layernorm.weight' \(and 1 more\) are not finite"
    with pytest.raises(ModelError, match=message):
        trainer_class(model, config_class(**settings(tmp_path)), rows(4), processing_class=tokenizer)


def test_halved_micro_batches_are_guarded_too(tmp_path: Path) -> None:
    trainer, seen = watched("slime", tmp_path, lora=False, on_nonfinite="skip", auto_find_batch_size=True)
    trainer._halving.parts = 2
    poison(trainer, "loss nan", [2, 4], micro_batch=1)
    trainer.train()
    assert [s for s in range(2, STEPS + 1) if same(seen.after[s], seen.after[s - 1])] == [2, 4]
    assert steps_logged(trainer)[-1]["skipped_steps"] == 2


@pytest.mark.parametrize("fault", ["loss nan", "gradient nan"])
def test_objectives_that_divide_by_what_they_keep(tmp_path: Path, fault: str) -> None:
    trainer, seen = watched(
        "sft", tmp_path, lora=False, on_nonfinite="skip", objective={"name": "threshold", "low": 0.003}
    )
    poison(trainer, fault, [2], micro_batch=1)
    output = trainer.train()
    assert [s for s in range(2, STEPS + 1) if same(seen.after[s], seen.after[s - 1])] == [2]
    taken = [log["loss"] for log in steps_logged(trainer) if "loss" in log]
    assert output.training_loss == pytest.approx(sum(taken) / 5, rel=1e-6)


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_resumed_run_has_skipped_what_it_skipped(tmp_path: Path, stop: int) -> None:
    def trainer(folder: str, **changed: Any) -> LeanTrainer:
        made = trainer_of("sft", tmp_path / folder, lora=True, on_nonfinite="skip", **changed)
        poison(made, "loss nan", [2, 3, 6])
        return made

    whole = run(trainer("run"))
    assert whole.state["guard"]["skipped"] == 3
    (tmp_path / "resumed").mkdir()
    (tmp_path / "run" / "metrics.jsonl").rename(tmp_path / "resumed" / "metrics.jsonl")
    resumed = run(trainer("resumed", save_strategy="no"), tmp_path / "run" / f"checkpoint-{stop}")
    for picture in (resumed, whole):
        picture.logs = [repr(sorted(log.items())) for log in picture.logs]  # where NaN is NaN
    resumed.require_same(whole)


def test_what_steps_in_the_backward_is_stopped_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with DeepSpeed: a micro-batch's loss is looked at before its backward."""
    trainer = trainer_of("sft", tmp_path, lora=False, save_strategy="no")
    monkeypatch.setattr(LeanTrainer, "_steps_in_backward", True)
    poison(trainer, "loss nan", [2], micro_batch=1)
    backward, passes = trainer.accelerator.backward, []
    monkeypatch.setattr(
        trainer.accelerator, "backward", lambda loss, **k: (passes.append(loss), backward(loss, **k))
    )
    with pytest.raises(NonFiniteError, match="step 2: the loss is nan"):
        trainer.train()
    assert len(passes) == 3 + 1
    assert [row["micro_batch"] for row in written(trainer, "nonfinite-step-2.json")["rows"]] == [0, 0, 1, 1]


@pytest.mark.parametrize("setting", [{"on_nonfinite": "skip"}, {"on_spike": "raise"}], ids=str)
def test_what_has_no_step_to_stand_before_is_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(setting))}: .*DeepSpeed and some optimizers"):
        trainer_of("sft", tmp_path, lora=False, optim="galore_adamw_layerwise", **setting)
