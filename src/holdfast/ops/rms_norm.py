"""Root mean square layer norm (Zhang & Sennrich 2019, arXiv:1910.07467) that keeps its input and one number a row.

Written out in torch, autograd keeps the normalized states too, and takes them through a dozen passes. Here the backward
forms them again from the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """`weight · x / sqrt(mean(x²) + eps)` along the last dimension, in float32 (float64 for a float64 `x`).

    Args:
        x: (..., size).
        weight: (size,).
        eps: added to the mean square.
        dtype: of the result; None: the one that `x` and `weight` have together.

    Raises:
        RuntimeError: differentiated twice.
    """
    if dtype is None:
        dtype = torch.promote_types(x.dtype, weight.dtype)
    result: Tensor = _RMSNorm.apply(x, weight, eps, dtype)  # type: ignore[no-untyped-call]
    return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # in one pass, where squares take two
        rate = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rate)
        return torch.mul(wide, rate).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the gradients of rms_norm have no derivative")
        x, weight, rate = ctx.saved_tensors
        size, wide = x.shape[-1], rate.dtype
        rate = rate.reshape(-1, 1)
        unit = x.to(wide).reshape(-1, size) * rate
        upstream = upstream.to(wide).reshape(-1, size)
        along = unit * upstream
        d_weight = along.sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None, None
        # rate · (weight · upstream − unit · mean(weight · upstream · unit))
        lean = torch.mv(along, weight.to(wide)).div_(-size).unsqueeze(1)
        d_x = torch.mul(upstream, weight, out=along).addcmul_(unit, lean).mul_(rate)
        return d_x.view(x.shape).to(x.dtype), d_weight, None, None
