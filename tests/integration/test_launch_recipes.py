"""recipes/accelerate: each file read by Accelerate's own loader, up to the environment its processes would get."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from holdfast.errors import ConfigError
from holdfast.training.sharding import require_exact
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "recipes" / "accelerate"
NAMES = ["cpu_ddp", "ddp", "deepspeed_zero2", "deepspeed_zero3", "fsdp2"]


def launched(name: str, *more: str) -> Any:
    """The launcher's arguments, with the recipe's settings filled in."""
    words = [
        "--config_file",
        str(FOLDER / f"{name}.yaml"),
        *more,
        "-m",
        "holdfast",
        "run",
        "run.yaml",
        "--resume",
    ]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert args.module
    assert (args.training_script, args.training_script_args) == ("holdfast", ["run", "run.yaml", "--resume"])
    return args


def test_all_are_known() -> None:
    text = (REPOSITORY / "docs" / "clusters.md").read_text(encoding="utf-8")
    assert sorted(path.stem for path in FOLDER.iterdir()) == NAMES
    assert all(name.removeprefix("deepspeed_") in text for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_in_its_head(name: str) -> None:
    """The comment at the top shows a command that names the file itself."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    words = shlex.split(" ".join(line[4:].removesuffix("\\") for line in lines if line.startswith("#   ")))
    assert words[:4] == ["accelerate", "launch", "--config_file", f"recipes/accelerate/{name}.yaml"]
    assert any(
        (REPOSITORY / word).is_file() for word in words if word.startswith("recipes/") and name not in word
    )


@pytest.mark.parametrize("name", ["cpu_ddp", "ddp"])
def test_ddp(name: str) -> None:
    args = launched(name, "--num_processes", "3")
    assert args.multi_gpu
    environment = prepare_multi_gpu_env(args)
    assert args.nproc_per_node == "3"
    assert args.master_port != "29500", "a port that another run may have"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"  # the run's own settings say
    assert "ACCELERATE_USE_FSDP" not in environment


def test_several_nodes() -> None:
    args = launched(
        "ddp", "--num_machines", "2", "--machine_rank", "1", "--num_processes", "16",
        "--main_process_ip", "first-node", "--main_process_port", "29500",
    )  # fmt: skip
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)


def test_fsdp2(monkeypatch: pytest.MonkeyPatch) -> None:
    args = launched("fsdp2")
    assert args.use_fsdp
    for name, value in prepare_multi_gpu_env(args).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    require_exact(plugin)
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy is not None, "a layer at a time"
    assert str(plugin.state_dict_type) == "StateDictType.FULL_STATE_DICT"
    plugin.cpu_ram_efficient_loading = True
    with pytest.raises(ConfigError, match="fsdp_cpu_ram_efficient_loading"):
        require_exact(plugin)
    monkeypatch.setenv("FSDP_VERSION", "1")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "FULL_SHARD")
    monkeypatch.setenv("FSDP_SYNC_MODULE_STATES", "false")
    with pytest.raises(ConfigError, match="fsdp_version: 2"):
        require_exact(FullyShardedDataParallelPlugin())


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = launched(f"deepspeed_zero{stage}")
    assert args.use_deepspeed
    args.deepspeed_fields_from_accelerate_config = "zero_stage"
    _, environment = prepare_deepspeed_cmd_env(args)
    for name, value in environment.items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    plugin = DeepSpeedPlugin()
    config = plugin.deepspeed_config["zero_optimization"]
    assert config["stage"] == stage
    assert not plugin.zero3_init_flag, "a model that is loaded in pieces cannot be checked"
    assert config["stage3_gather_16bit_weights_on_model_save"] is (stage == 3)
    # what the Trainer fills in from the run's settings
    assert plugin.deepspeed_config["gradient_accumulation_steps"] == "auto"
    assert plugin.deepspeed_config["gradient_clipping"] == "auto"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
