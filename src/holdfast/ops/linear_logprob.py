"""The public entry: log-probabilities of target tokens from hidden states, without whole logits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.errors import did_you_mean
from holdfast.ops.chunked import linear_logprob_chunked
from holdfast.ops.reference import linear_logprob_reference

logger = logging.getLogger(__name__)


def _linear_logprob_triton(*inputs: Tensor, **options: Any) -> Tensor:
    """`linear_logprob_triton`, imported at its first use: Triton is not on every machine."""
    if find_spec("triton") is None:
        raise ValueError(
            "implementation='triton' needs the package triton: pip install triton, or use implementation='auto'"
        )
    from holdfast.ops.triton_kernel import linear_logprob_triton

    return linear_logprob_triton(*inputs, **options)


_IMPLEMENTATIONS = {
    "reference": linear_logprob_reference,
    "chunked": linear_logprob_chunked,
    "triton": _linear_logprob_triton,
}

# Up to this many logits, a couple of blocks, "auto" forms them whole: a trained head then takes 0.6 to 0.8 of
# the chunked form's time, a frozen one 0.8 to 1.0. Beyond, memory decides, and before long time too.
WHOLE_LOGITS = 1 << 21


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    implementation: Literal["auto", "reference", "chunked", "triton"] = "auto",
) -> Tensor:
    """Log-probability of each target under `softmax(cap(logit_scale · (hidden @ weight.T + bias)))`.

    Defined by `linear_logprob_reference`; every implementation gives its values and gradients, and "chunked"
    and "triton" never form the (tokens, vocab) logits. Under `torch.autocast` the inputs are cast as for
    `F.linear`.

    Args:
        hidden: (tokens, hidden) last hidden states: flatten leading dimensions, and select the positions that
            count, beforehand.
        weight: (vocab, hidden) of the LM head.
        targets: (tokens,) int64, each in [0, vocab).
        bias: (vocab,) of the LM head.
        softcap: bound on the logits, `softcap · tanh(logits / softcap)`; Gemma's `final_logit_softcapping`.
        logit_scale: factor on the logits before the cap; `logit_scale` in Cohere, 1 / `logits_scaling` in
            Granite.
        implementation: "auto" picks "triton" on an NVIDIA GPU for any dtype but float64, where the package
            triton is installed, and otherwise by the number of logits.

    Returns:
        (tokens,) log-probabilities in nats, <= 0; float32, or float64 for float64 inputs.

    Raises:
        ValueError: shapes that do not fit together, dtypes that differ outside autocast, a softcap that is
            not positive, an implementation that is unknown or cannot run here.
        IndexError: a target outside the vocabulary. On a GPU, where looking would wait for the device, such
            a target gives NaN, or the device's own index error.
    """
    given = hidden, weight, bias
    hidden, weight = as_product_sees(hidden), as_product_sees(weight)
    bias = None if bias is None else as_product_sees(bias)
    require_fit(hidden, weight, targets, bias, softcap)
    if implementation == "auto":
        implementation = implementation_for(hidden.device, hidden.dtype, len(hidden) * len(weight))
    require_implementation(implementation)
    options: dict[str, Any] = {"softcap": softcap, "logit_scale": logit_scale}
    if implementation == "chunked":  # casts by itself, so that its gradients are not rounded
        dtype = hidden.dtype
        hidden, weight, bias = given
        options["dtype"] = dtype
    return _IMPLEMENTATIONS[implementation](hidden, weight, targets, bias=bias, **options)


def require_implementation(name: str) -> None:
    """See that `linear_logprob` knows an implementation.

    Raises:
        ValueError: it does not; names the nearest.
    """
    known = ["auto", *_IMPLEMENTATIONS]
    if name not in known:
        raise ValueError(f"unknown implementation {name!r}{did_you_mean(name, known)}")


def implementation_for(
    device: torch.device, dtype: torch.dtype, logits: int
) -> Literal["reference", "chunked", "triton"]:
    """What "auto" picks for products of `dtype` on `device`, and this many logits (tokens times vocabulary)."""
    if device.type == "cuda" and dtype != torch.float64 and _triton_runs(device):
        return "triton" if agrees(_linear_logprob_triton, device, dtype) else "chunked"
    return "reference" if logits <= WHOLE_LOGITS else "chunked"


@cache
def _triton_runs(device: torch.device) -> bool:
    """Whether Triton is installed, and compiles for this GPU: NVIDIA's of compute capability 8.0 and later."""
    if find_spec("triton") is None or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def agrees(form: Callable[..., Tensor], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `form` gives the definition's values and gradients on this device: asked once, of a small problem.

    A kernel is compiled where it runs, by whatever compiler is there; one that fails or errs is not used, and said so.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            off = _error(form, device, dtype)
    except Exception as error:  # whatever a compiler, a driver or a launch can raise
        logger.warning("the Triton kernel of the LM head does not run here, plain torch is used: %s", error)
        return False
    # a few roundings of the products' inputs; a wrong tile or mask is off by the whole value
    right = off <= (1e-4 if dtype == torch.float32 else 3e-2)
    if not right:
        logger.warning("the Triton kernel of the LM head is off by %.2g here, plain torch is used", off)
    return right


def _error(form: Callable[..., Tensor], device: torch.device, dtype: torch.dtype) -> float:
    """The largest relative error of values and gradients on a small problem, against the definition in float64."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 96, generator=generator).to(device, dtype) for rows in (70, 331))
    targets = torch.randint(331, (70,), generator=generator).to(device)

    def run(form: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (hidden, weight)]
        logps = form(*inputs, targets, bias=None, softcap=4.0, logit_scale=0.25)
        return [logps.detach(), *torch.autograd.grad(logps.sum(), inputs)]

    pairs = zip(run(form, dtype), run(linear_logprob_reference, torch.float64), strict=True)
    return max(float((own.double() - true).norm() / true.norm()) for own, true in pairs)


def as_product_sees(tensor: Tensor) -> Tensor:
    """`tensor` as a matrix product would see it under autocast, which leaves float64 alone."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device) and tensor.is_floating_point() and tensor.dtype != torch.float64:
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def require_fit(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "hidden must be (tokens, hidden) and weight (vocab, hidden), "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets must be ({len(hidden)},), one per token, got {tuple(targets.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({len(weight)},), one per vocabulary entry, got {tuple(bias.shape)}")
    if targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64, got {targets.dtype}")
    if not hidden.is_floating_point():
        raise ValueError(f"hidden must be floating point, got {hidden.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise ValueError(
                f"hidden is {hidden.dtype} but {name} is {tensor.dtype}: cast one, or use torch.autocast"
            )
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, or None for no cap, got {softcap}")
    if targets.device.type == "cpu" and len(targets):
        for target in torch.stack(torch.aminmax(targets)).tolist():
            if not 0 <= target < len(weight):
                raise IndexError(
                    f"target {target} is outside the vocabulary of {len(weight)}: "
                    "select the positions that count before the call; a masked one has no log-probability"
                )
