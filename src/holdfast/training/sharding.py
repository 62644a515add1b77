"""Models that processes share out among them (FSDP 2): what is asked of the plugin, and the whole model back again."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import ConfigError
from holdfast.training.processes import whole


def require_exact(plugin: Any) -> None:
    """See that a sharded run computes what an unsharded one does, as far as its plugin decides.

    Under mixed precision Accelerate has every module's output, the log-probs too, and the sum of the gradients rounded
    to half precision; both are kept in float32 here, in place.

    Args:
        plugin: Accelerate's `FullyShardedDataParallelPlugin`.

    Raises:
        ConfigError: FSDP 1; or weights that only the first process loads.
    """
    if plugin.fsdp_version != 2:
        raise ConfigError("FSDP 1 is not supported: set fsdp_version: 2 (see recipes/accelerate/fsdp2.yaml)")
    if plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            "fsdp_cpu_ram_efficient_loading leaves all processes but the first without weights, and each checks the "
            "model that it loads: set it to false"
        )
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )


def blank_copy(model: nn.Module) -> nn.Module:
    """The model with parameters that have a shape and no numbers; those that are tied stay so."""
    blanks: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, blanks)


def gather_state(model: nn.Module) -> dict[str, Tensor]:
    """A sharded model's state dict, whole. All processes must call this together; the main one's result counts."""
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def filled(blank: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A `blank_copy`, which stays blank, with the numbers of `state`, on whatever devices they are."""
    blank = copy.deepcopy(blank)
    tied = defaultdict(list)
    for name, parameter in blank.named_parameters(remove_duplicate=False):
        tied[id(parameter)].append(name)
    blank.load_state_dict(state, assign=True)
    for first, *others in tied.values():
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(blank.get_submodule(owner), attribute, blank.get_parameter(first))
    return blank
