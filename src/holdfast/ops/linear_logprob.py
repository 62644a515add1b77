"""The public entry: log-probabilities of target tokens from hidden states, without whole logits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from holdfast.errors import did_you_mean
from holdfast.ops.chunked import linear_logprob_chunked
from holdfast.ops.reference import linear_logprob_reference

_IMPLEMENTATIONS = {"reference": linear_logprob_reference, "chunked": linear_logprob_chunked}

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
    implementation: Literal["auto", "reference", "chunked"] = "auto",
) -> Tensor:
    """Log-probability of each target under `softmax(cap(logit_scale · (hidden @ weight.T + bias)))`.

    Defined by `linear_logprob_reference`; every implementation gives its values and gradients, and "chunked"
    never forms the (tokens, vocab) logits. Under `torch.autocast` the inputs are cast as for `F.linear`.

    Args:
        hidden: (tokens, hidden) last hidden states: flatten leading dimensions, and select the positions that
            count, beforehand.
        weight: (vocab, hidden) of the LM head.
        targets: (tokens,) int64, each in [0, vocab).
        bias: (vocab,) of the LM head.
        softcap: bound on the logits, `softcap · tanh(logits / softcap)`; Gemma's `final_logit_softcapping`.
        logit_scale: factor on the logits before the cap; `logit_scale` in Cohere, 1 / `logits_scaling` in
            Granite.
        implementation: "auto" picks by the number of logits.

    Returns:
        (tokens,) log-probabilities in nats, <= 0; float32, or float64 for float64 inputs.

    Raises:
        ValueError: shapes that do not fit together, dtypes that differ outside autocast, a softcap that is
            not positive, an unknown implementation.
        IndexError: a target outside the vocabulary. On a GPU, where looking would wait for the device, such
            a target gives NaN, or the device's own index error.
    """
    hidden, weight = _autocast(hidden), _autocast(weight)
    bias = None if bias is None else _autocast(bias)
    _check(hidden, weight, targets, bias, softcap)
    if implementation == "auto":
        implementation = "reference" if len(hidden) * len(weight) <= WHOLE_LOGITS else "chunked"
    if implementation not in _IMPLEMENTATIONS:
        known = did_you_mean(implementation, ["auto", *_IMPLEMENTATIONS])
        raise ValueError(f"unknown implementation {implementation!r}{known}")
    form = _IMPLEMENTATIONS[implementation]
    return form(hidden, weight, targets, bias=bias, softcap=softcap, logit_scale=logit_scale)


def _autocast(tensor: Tensor) -> Tensor:
    """`tensor` as a matrix product would see it; autocast leaves float64 alone."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device) and tensor.is_floating_point() and tensor.dtype != torch.float64:
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def _check(
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
