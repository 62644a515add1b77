"""What the processes of a run tell each other: values, and tensors that they share out among them."""

from __future__ import annotations

from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")


def each_process(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks, on each of them."""
    return list(gather_object([value])) if PartialState().num_processes > 1 else [value]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, whole. All processes must call this together; the main one's result counts."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    with torch.no_grad():
        full: Tensor = tensor.full_tensor()
    return full.cpu() if PartialState().is_main_process else full.new_empty(0)


def spread(value: Tensor | None, like: Tensor) -> Tensor:
    """This process's part of the main process's `value`, laid out and placed as `like`. All must call this together.

    Args:
        value: whole, with the shape and the number format of `like`; used on the main process only.
    """
    processes = PartialState()
    if processes.num_processes == 1 and not isinstance(like, DTensor):
        assert value is not None
        return value.to(like.device)
    if processes.is_main_process:
        assert value is not None
        full = value.to(like.device).contiguous()
    else:
        full = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(full, like.device_mesh, like.placements)
    return _broadcast(full)


def _broadcast(tensor: Tensor) -> Tensor:
    """The main process's tensor, over the device on which the processes talk to each other."""
    there = tensor.to(PartialState().device)
    distributed.broadcast(there, 0)
    return there.to(tensor.device)
