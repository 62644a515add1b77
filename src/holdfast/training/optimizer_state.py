"""An optimizer's state given back to it as it was saved."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor


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
            loaded = optimizer.state[parameter][key]
            if isinstance(saved, Tensor) and saved.dtype != loaded.dtype:
                optimizer.state[parameter][key] = saved.to(loaded.device)
