"""An optimizer's state by the names of its parameters, whole; and given back to it as it was saved.

By name, and whole where processes share it out: so a run on two processes goes on as one, and the reverse.

    {
        "state": {"model.norm.weight": {"step": ..., "exp_avg": ...}, ...},
        "groups": [{"lr": ..., "params": ["model.norm.weight", ...], ...}, ...],
    }
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from holdfast.errors import CheckpointError, ConfigError
from holdfast.ranks import once
from holdfast.training.processes import spread, whole

# What compiling and activation checkpointing put into names.
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def parameter_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    """The names of an optimizer's parameters, a list a group.

    Raises:
        ConfigError: it steps something that is no parameter of the model.
    """
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    try:
        return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    except KeyError:
        raise ConfigError(
            f"{type(optimizer).__name__} steps tensors that are no parameters of the model, so its state cannot be "
            "saved: choose another `optim`, or set save_strategy: no"
        ) from None


def gather_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """The state of an optimizer. All processes must call this together; the main one's result counts.

    Args:
        optimizer: the one that steps, not a wrapper around it.
        model: the one it steps, without what wraps it.
    """
    names = parameter_names(optimizer, model)
    state = optimizer.state_dict()
    numbers = chain.from_iterable(group["params"] for group in state["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    by_name = {}
    for number, name, parameter in zip(numbers, chain.from_iterable(names), parameters, strict=True):
        if number not in state["state"]:
            continue

        def gather(value: Tensor, name: str = name, parameter: Tensor = parameter) -> Tensor:
            if isinstance(value, DTensor) and (
                not isinstance(parameter, DTensor) or value.placements != parameter.placements
            ):
                raise CheckpointError(
                    f"{type(optimizer).__name__} shards its state of '{name}' otherwise than the parameter, and it "
                    "cannot be saved: choose another `optim` (adamw_torch)"
                )
            return whole(value)

        by_name[name] = _mapped(state["state"][number], Tensor, gather)
    groups = [{**group, "params": own} for group, own in zip(state["param_groups"], names, strict=True)]
    return {"state": by_name, "groups": groups}


def spread_optimizer(
    load: Callable[[], Mapping[str, Any]], optimizer: torch.optim.Optimizer, model: nn.Module
) -> None:
    """Give an optimizer the state that `gather_optimizer` made of one. All processes must call this together.

    Args:
        load: reads the state; called on the main process only.

    Raises:
        CheckpointError: it is the state of other parameters.
    """
    names = parameter_names(optimizer, model)
    tensors: list[Tensor] = []

    def outline() -> dict[str, Any]:
        state = load()
        saved = [group["params"] for group in state["groups"]]
        if saved != names:
            there, here = set(chain.from_iterable(saved)), set(chain.from_iterable(names))
            differing = sorted(there ^ here)[:3] or ["their groups and their order"]
            raise CheckpointError(
                f"the optimizer's state is of other parameters than are trained now: {', '.join(differing)}"
            )

        def take(tensor: Tensor) -> _Outline:
            tensors.append(tensor)
            return _Outline(tuple(tensor.shape), tensor.dtype)

        result: dict[str, Any] = _mapped(dict(state), Tensor, take)
        return result

    shapes = once(outline)
    waiting = iter(tensors)
    parameters = dict(
        zip(
            chain.from_iterable(names),
            chain.from_iterable(group["params"] for group in optimizer.param_groups),
            strict=True,
        )
    )
    number = {name: at for at, name in enumerate(parameters)}
    packed = {}
    for name, own in shapes["state"].items():

        def place(outline: _Outline, parameter: Tensor = parameters[name]) -> Tensor:
            return spread(next(waiting, None), outline.like(parameter))

        packed[number[name]] = _mapped(own, _Outline, place)
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in shapes["groups"]]
    restore_optimizer(optimizer, {"state": packed, "param_groups": groups})


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict(state)`, with every tensor in the number format it was saved in.

    PyTorch casts what it loads to its parameter's format. Adafactor keeps float32 moments of bfloat16 parameters,
    and would go on with rounded ones.

    Args:
        optimizer: the one that steps, not a wrapper around it.
        state: a `state_dict` of an optimizer of the same parameters.
    """
    optimizer.load_state_dict(dict(state))
    numbers = chain.from_iterable(group["params"] for group in state["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, saved in state["state"].get(number, {}).items():
            # bitsandbytes packs its 8-bit tensors into a mapping when it saves, and unpacks them as they were
            if isinstance(saved, Tensor) and saved.dtype != (loaded := optimizer.state[parameter][key]).dtype:
                optimizer.state[parameter][key] = saved.to(loaded.device)


@dataclass(frozen=True)
class _Outline:
    """Where a tensor stands in the state, for the processes that do not have it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def like(self, parameter: Tensor) -> Tensor:
        """A tensor laid out as the parameter is, where it has its shape: moments are sharded as their parameter."""
        if isinstance(parameter, DTensor) and self.shape == tuple(parameter.shape):
            return torch.empty_like(parameter, dtype=self.dtype)
        return torch.empty(self.shape, dtype=self.dtype)


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A nested state with everything of one kind changed, in the order it stands in."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(inner, kind, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(inner, kind, change) for inner in value)
    return value


def moments_saved(args: TrainingArguments) -> int:
    """Numbers that a checkpoint holds of each trained weight beside it, as far as that is certain."""
    adam = args.optim in ("adamw_torch", "adamw_torch_fused")
    return 2 if adam and not args.save_only_model else 0


def plain_name(name: str) -> str:
    """A parameter's name without what wraps its module."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
