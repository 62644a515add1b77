"""`F.linear` in float32 by oneDNN, on processors where that is the faster of the two libraries torch brings.

torch multiplies float32 matrices through MKL. On AMD's processors with AVX-512 a product with a weight, or with its
transpose, takes oneDNN 0.7 to 0.9 of that time (docs/log.md); that of two activations, which makes the weight's
gradient, does not, and stays where it was. Half precision is oneDNN's already. Both libraries sum in float32; the
results differ by rounding.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PROCESSORS = Path("/proc/cpuinfo")
# Multiplications of a product below which handing it over costs more than it saves. oneDNN compiles for each shape it
# meets, which takes 2 ms; the layers of a model share their shapes.
FEWEST = 1 << 24


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, up to the order of rounding.

    Args:
        x: (..., inputs).
        weight: (outputs, inputs).
        bias: (outputs,).

    Returns:
        (..., outputs).

    Raises:
        RuntimeError: differentiated twice, where oneDNN computed it.
    """
    if _takes(x, weight, bias) and onednn_is_faster():
        result: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return F.linear(x, weight, bias)


@cache
def onednn_is_faster() -> bool:
    """Whether this machine's float32 products are oneDNN's: AMD's, with AVX-512, and MKL in torch."""
    if not torch._C.has_mkl or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not PROCESSORS.exists() or "AuthenticAMD" not in PROCESSORS.read_text(encoding="utf-8"):
        return False
    return _agrees()


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are what `_product` is for."""
    return (
        not torch.compiler.is_compiling()
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and (bias is None or bias.dtype == torch.float32)
        # what a launcher has in the weight's place (a shard, a wrapper) has products of its own
        and type(weight) in (Tensor, torch.nn.Parameter)
        and x.numel() * len(weight) >= FEWEST
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` without a derivative; `weight` may be a transpose."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _agrees() -> bool:
    """Whether this torch has the function, and it computes what it should: it is none of torch's public ones."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")
        for size in ((2, 33, 40), (24, 40), (24,))
    )
    try:
        found = _product(x, weight, bias), _product(x, weight.t().contiguous().t())
    except (AttributeError, RuntimeError, TypeError):
        return False
    true = F.linear(x, weight, bias), F.linear(x, weight)
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, true, strict=True))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the gradients of linear have no derivative here: turn torch.backends.mkldnn off"
            )
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = upstream.reshape(-1, upstream.shape[-1])
        d_x = _product(upstream, weight.t()) if wants_x else None
        d_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if wants_weight else None
        return d_x, d_weight, rows.sum(0) if wants_bias else None
