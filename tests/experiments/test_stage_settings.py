"""A stage's settings: what is refused before anything is loaded, by the key's path."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.training_args import OptimizerNames

from holdfast.errors import ConfigError
from holdfast.experiments.stage_settings import RUN_WIDE, SECRETS, stage_keys, stage_settings
from holdfast.training.config import PreferenceConfig, SFTConfig


def align(**settings: Any) -> dict[str, Any]:
    return stage_settings(settings, PreferenceConfig, "align")


@pytest.mark.parametrize(
    ("key", "accepted", "refused"),
    [
        ("per_device_train_batch_size", [1, 64], [0, -1, True, 1.5, "many", 10**20]),
        ("per_device_eval_batch_size", [1], [0]),
        ("gradient_accumulation_steps", [1], [0]),
        ("learning_rate", [0, 1e-6, "1e-6"], [-1, float("nan"), float("inf"), "fast", True, None]),
        ("num_train_epochs", [0.5, 3], [0, -1]),
        ("max_steps", [-1, 1], [0, -5, 2.5]),
        ("logging_steps", [1, 10, 0.1], [0, -1, 2.5]),
        ("eval_steps", [None, 5], [0, True]),
        ("save_steps", [500], [0]),
        ("weight_decay", [0, 0.1], [-0.1]),
        ("adam_beta1", [0, 0.9], [1, -0.1]),
        ("adam_beta2", [0.999], [1.5]),
        ("adam_epsilon", [1e-8], [-1]),
        ("max_grad_norm", [0, 1], [-1]),
        ("warmup_steps", [0, 0.1, 100], [-1]),
        ("dataloader_num_workers", [0, 2], [-1]),
        ("dataset_num_proc", [None, 1], [0, True]),
        ("reference_batch_size", [None, 1], [0]),
        ("neftune_noise_alpha", [None, 5], [0, -1]),
        ("on_nonfinite", ["raise", "skip"], ["ignore", None, False]),
        ("on_spike", ["warn", "raise", "off"], ["skip", None, False]),
        ("spike_threshold", [1, 6.5], [0, 0.5, True]),
        ("spike_window", [5, 1000], [4, 7.5, None]),
        ("optim", ["adamw_torch", "sgd"], ["nonsense", None, False]),
        ("lr_scheduler_type", ["cosine", "constant"], ["nonsense", "cosin"]),
        ("lr_scheduler_kwargs", [None, {}], [{"nonsense": 1}, "", 3]),
        ("eval_strategy", ["no", "steps"], ["sometimes", False]),
        ("train_sampling_strategy", ["random", "sequential", "group_by_length"], ["batch_rebalance"]),
        ("length_column_name", ["length"], ["tokens"]),
        ("log_level", ["passive", "error"], ["loud"]),
        ("report_to", ["none", "all", ["none"], []], [None, "nonsense", ["nonsense"], 3, False]),
        ("save_strategy", ["no", "epoch"], ["best"]),
        ("label_smoothing_factor", [0, 0.0], [0.1]),
        ("remove_unused_columns", [False], [True]),
        ("resume_from_checkpoint", [None], ["checkpoint-10"]),
        (
            "objective",
            ["dpo", {"name": "dpo"}, {"hard_margin": 1}],
            [None, 5, ["slime"], {1: 2}, {"name": "nll"}],
        ),
    ],
)
def test_values(key: str, accepted: list[Any], refused: list[Any]) -> None:
    for value in accepted:
        assert key in align(**{key: value})
    for value in refused:
        with pytest.raises(ConfigError) as raised:
            align(**{key: value})
        assert str(raised.value).startswith(f"align.{key}: "), (value, str(raised.value))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_scheduler_type": "cosin"}, "no such value as 'cosin' (did you mean 'cosine'?)"),
        ({"eval_strategy": False}, "YAML reads yes, no, on and off as truth values): put text in quotes"),
        ({"run_name": False}, "got false (YAML reads"),
        ({"run_name": 1.5}, """put text in quotes, on a command line as 'key="1.5"'"""),
        ({"report_to": "tensorbord"}, "(did you mean 'tensorboard'?)"),
        ({"report_to": None}, "got null; write none for no reports"),
        ({"max_steps": 0}, "at least 1, or -1 to go by num_train_epochs, got 0"),
        ({"adam_beta1": 1}, "must be less than 1, got 1"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "align.lr_scheduler_kwargs: One of min_lr"),
        ({"learning_rat": 1}, "did you mean 'learning_rate'?"),
        ({7: 1}, "align.7: unknown key"),
        ({"max_length": 1}, "set for the whole run, as `data.max_length`"),
        ({"hub_token": "hf_x"}, "secret"),
    ],
)
def test_messages_say_how_to_go_on(settings: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        stage_settings(settings, PreferenceConfig, "align")
    assert message in str(raised.value)


def test_names_and_numbers_come_out_as_the_trainer_takes_them() -> None:
    checked = align(learning_rate="1e-6", lr_scheduler_type="cosine", warmup_steps=1, report_to="none")
    assert checked.pop("objective")["name"] == "slime"
    assert checked == {
        "learning_rate": 1e-6,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 1.0,
        "report_to": "none",
    }
    assert type(checked["lr_scheduler_type"]) is str  # plain, for run.json


def test_reports_go_only_to_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    where = "holdfast.experiments.stage_settings.get_available_reporting_integrations"
    monkeypatch.setattr(where, lambda: ["tensorboard"])
    assert align(report_to="tensorboard")["report_to"] == "tensorboard"
    for names in ("wandb", ["tensorboard", "wandb"]):
        with pytest.raises(ConfigError, match="align.report_to: wandb is not installed"):
            align(report_to=names)


def test_optimizers_need_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.experiments.stage_settings.find_spec", lambda name: None)
    built_in = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
    for name in OptimizerNames:
        if name.value in built_in:
            align(optim=name.value)
        else:
            with pytest.raises(ConfigError, match="align.optim: needs the package "):
                align(optim=name.value)
    monkeypatch.setattr(
        "holdfast.experiments.stage_settings.find_spec", lambda name: name == "bitsandbytes" or None
    )
    assert align(optim="paged_adamw_8bit")["optim"] == "paged_adamw_8bit"
    with pytest.raises(ConfigError, match="align.use_liger_kernel: needs the package liger_kernel"):
        align(use_liger_kernel=True)


def test_what_a_stage_may_set() -> None:
    assert stage_keys(SFTConfig) >= {"learning_rate", "objective", "train_on"}
    assert not stage_keys(PreferenceConfig) & (RUN_WIDE.keys() | SECRETS)
