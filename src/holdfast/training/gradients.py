"""The norm of a model's gradients, measured first and clipped afterwards.

torch's `clip_grad_norm_` does both at once, and a norm of NaN makes every gradient NaN: what was wrong can then no
longer be told, and the step no longer be left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def gradient_norm(model: nn.Module) -> Tensor:
    """() the 2-norm of all gradients as one vector; they stay as they are.

    Of gradients that are sharded (DTensor) the whole norm, by one reduction a mesh; every process calls this.
    """
    norms = [
        _whole(get_total_norm([p.grad for p in group if p.grad is not None]))
        for group in _by_mesh(model).values()
    ]
    if len(norms) == 1:
        return norms[0]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def clip_gradients(model: nn.Module, max_norm: float, norm: Tensor) -> None:
    """Scale the gradients, whose norm is `norm`, down to `max_norm` where they are longer."""
    for mesh, group in _by_mesh(model).items():
        clip_grads_with_norm_(group, max_norm, norm if mesh is None else _on(mesh, norm))


def _by_mesh(model: nn.Module) -> dict[Any, list[nn.Parameter]]:
    """The parameters with a gradient, by the mesh it is sharded over; None: it is whole."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.grad is not None:
            groups.setdefault(getattr(parameter.grad, "device_mesh", None), []).append(parameter)
    return groups


def _whole(norm: Any) -> Tensor:
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _on(mesh: Any, norm: Tensor) -> Any:
    """The norm as a DTensor that every process has whole, which sharded gradients can be multiplied with."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(norm, mesh)
