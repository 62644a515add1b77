"""`act(gate) · up`, the inside of a gated MLP (Shazeer 2020, arXiv:2002.05202), keeping its two inputs alone.

Autograd would keep `act(gate)` as well, one of the widest tensors of a layer. Here the backward forms it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def gated_product(gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    """`act(gate) * up`.

    Args:
        gate, up: (..., size).
        act: element by element.

    Raises:
        RuntimeError: differentiated twice.
    """
    result: Tensor = _GatedProduct.apply(gate, up, act)  # type: ignore[no-untyped-call]
    return result


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return _times(act(gate), up, gate)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the gradients of gated_product have no derivative")
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            active = ctx.act(leaf)
        (d_gate,) = torch.autograd.grad(active, leaf, upstream * up)
        return d_gate, _times(active.detach(), upstream, gate), None


def _times(active: Tensor, factor: Tensor, gate: Tensor) -> Tensor:
    """`active * factor`, in the memory of `active` unless `act` gave back its input: fresh memory costs a CPU more."""
    if torch.compiler.is_compiling() or active.dtype != factor.dtype or active.data_ptr() == gate.data_ptr():
        return active * factor
    return active.mul_(factor)
