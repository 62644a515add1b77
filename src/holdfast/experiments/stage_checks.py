"""Settings of a stage that the trainer would find fault with only after rows were prepared and the model loaded."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from huggingface_hub import HfApi, constants
from transformers import Trainer
from transformers.training_args import OptimizerNames

from holdfast.errors import ConfigError, did_you_mean
from holdfast.experiments.values import shown
from holdfast.training.config import LeanConfig

# These look for their layers in the model.
_NEEDS_MODEL = re.compile(r"(galore|apollo)_.*|(ada)?lomo")


def check_compile_backend(backend: str | None, stage: str) -> None:
    """A backend of `torch.compile` that Accelerate knows.

    Raises:
        ConfigError: an unknown name; names the nearest.
    """
    known = [member.value.lower() for member in DynamoBackend]
    if backend is not None and backend.lower() not in known:
        raise ConfigError(
            f"{stage}.torch_compile_backend: no such value as {shown(backend)}{did_you_mean(backend, known)}"
        )


def check_optimizer_arguments(args: LeanConfig, stage: str) -> None:
    """Build the optimizer once for nothing, with what `optim_args` says.

    Raises:
        ConfigError: they cannot be read, or the optimizer does not take them, or passes over them.
    """
    if not args.optim_args:
        return
    where = f"{stage}.optim_args"
    if not all("=" in part for part in args.optim_args.split(",")):
        raise ConfigError(f"{where}: expected key=value, key=value, ..., got {shown(args.optim_args)}")
    name = OptimizerNames(args.optim).value
    if _NEEDS_MODEL.fullmatch(name):
        return
    try:
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer([torch.nn.Parameter(torch.zeros(1))], **options)
        without = copy.copy(args)
        without.optim_args = None
        used = options != Trainer.get_optimizer_cls_and_kwargs(without)[1]
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: {name} does not take {shown(args.optim_args)}: {error}") from error
    if not used:
        raise ConfigError(f"{where}: {name} passes over {shown(args.optim_args)}; leave it out")


def check_launch(settings: Mapping[str, Any], stage: str) -> None:
    """Sharding needs processes, which a launcher starts.

    Raises:
        ConfigError: there is none.
    """
    if settings.get("fsdp") and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"{stage}.fsdp: shards the model among processes, and this is one: start them with `accelerate launch` or "
            "`torchrun`, or leave it out"
        )


def check_hub(args: LeanConfig, stage: str) -> None:
    """Ask the hub who we are, where a model is to go there.

    Raises:
        ConfigError: it cannot be reached, or does not know us.
    """
    if not args.push_to_hub:
        return
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"{stage}.push_to_hub: the hub is offline here (HF_HUB_OFFLINE is set)")
    try:
        HfApi().whoami(token=args.hub_token)
    except Exception as error:  # every layer below has its own: the network's, the protocol's, the hub's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{stage}.push_to_hub: the hub cannot be reached, or takes nothing from here ({reason}); log in, or set "
            "HF_TOKEN"
        ) from error
