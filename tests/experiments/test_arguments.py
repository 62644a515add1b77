"""A run's stages as their trainers' configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import ConfigError
from holdfast.experiments.arguments import effective_settings, stage_arguments
from holdfast.experiments.config import parse_config
from holdfast.training.config import LeanConfig


def align(tmp_path: Path, **settings: Any) -> LeanConfig:
    config = parse_config(
        {
            "model": "some/model",
            "data": {"source": "rows.jsonl", "max_length": 77},
            "align": {"use_cpu": True} | settings,
            "output_dir": str(tmp_path),
            "seed": 5,
        }
    )
    args = stage_arguments(config, tmp_path)
    assert args.sft is None
    assert list(args.stages()) == ["align"]
    assert args.align is not None
    return args.align


@pytest.mark.parametrize(
    ("settings", "saving"),
    [
        ({}, ("steps", 0.1, 2)),
        ({"save_steps": 50}, ("steps", 50, 2)),
        ({"save_strategy": "epoch", "save_total_limit": None}, ("epoch", 0.1, None)),
        ({"save_strategy": "no"}, ("no", 0.1, 2)),
        # the best can only be chosen of those measured
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 7}, ("steps", 7, 2)),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "logging_steps": 4}, ("steps", 4, 2)),
        ({"load_best_model_at_end": True, "eval_strategy": "steps"}, ("steps", 10, 2)),
        ({"load_best_model_at_end": True, "eval_strategy": "epoch"}, ("epoch", 10, 2)),
    ],
    ids=str,
)
def test_when_checkpoints_are_saved(
    settings: dict[str, Any], saving: tuple[Any, ...], tmp_path: Path
) -> None:
    args = align(tmp_path, **settings)
    assert (args.save_strategy, args.save_steps, args.save_total_limit) == saving


def test_effective_settings_are_plain_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    args = align(tmp_path, objective="dpo", learning_rate=1e-6, fsdp_config=None)
    args.hub_token = "hf_secret"
    found = effective_settings(args)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["learning_rate"] == 1e-6
    assert found["adam_beta2"] == 0.999  # a default
    assert found["optim"] == "adamw_torch_fused"
    assert found["objective"]["name"] == "dpo"
    assert found["global_batch_size"] == 16  # 8 rows, 2 micro-batches, 1 process
    assert "hf_secret" not in json.dumps(found)
    # those of the whole run stand elsewhere
    assert not found.keys() & {"output_dir", "seed", "max_length", "hub_token"}


def test_the_same_settings_written_otherwise_are_the_same(tmp_path: Path) -> None:
    plain = effective_settings(align(tmp_path))
    assert effective_settings(align(tmp_path, learning_rate=5e-7, objective={"name": "slime"})) == plain
    assert effective_settings(align(tmp_path, weight_decay=0.1)) != plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim_args": "nonsense"}, "align.optim_args: expected key=value, key=value, ..., got 'nonsense'"),
        (
            {"optim": "adafactor", "optim_args": "clip_threshold=2,wrong=1"},
            "align.optim_args: adafactor passes over 'clip_threshold=2,wrong=1'; leave it out",
        ),
        ({"fsdp": "full_shard"}, "align.fsdp: shards the model among processes, and this is one"),
        ({"torch_compile_backend": "nonsense"}, "align.torch_compile_backend: no such value as 'nonsense'"),
        ({"torch_compile_backend": "inducto"}, "(did you mean 'inductor'?)"),
        ({"enable_jit_checkpoint": True}, "align.enable_jit_checkpoint: has no effect here"),
        ({"ignore_data_skip": True}, "align.ignore_data_skip: has no effect here"),
        ({"resume_from_checkpoint": "x"}, "`--resume` goes on with a run"),
        ({"push_to_hub": True}, "align.push_to_hub: the hub is offline here (HF_HUB_OFFLINE is set)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_would_fail_later_fails_here(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError) as refused:
        align(tmp_path, **settings)
    assert message in str(refused.value)


def test_what_is_sound_passes(tmp_path: Path) -> None:
    assert align(tmp_path, optim="adafactor", optim_args=None).optim_args is None
    assert align(tmp_path, torch_compile_backend="INDUCTOR").torch_compile_backend == "INDUCTOR"
    # ademamix needs its package, which is said by the key of the optimizer
    with pytest.raises(ConfigError, match="align.optim: needs the package"):
        align(tmp_path, optim="galore_adamw", optim_args="rank=64")


def test_a_hub_that_does_not_know_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def whoami(self: Any, token: str | None = None) -> dict[str, str]:
        asked.append(token)
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", whoami)
    with pytest.raises(ConfigError) as refused:
        align(tmp_path, push_to_hub=True)
    assert (
        "align.push_to_hub: the hub cannot be reached, or takes nothing from here (no route to host)"
        in str(refused.value)
    )
    assert asked == [None]
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self, token=None: {"name": "me"})
    assert align(tmp_path, push_to_hub=True).push_to_hub
