"""The sum of a loss of each token's log-prob, its gradient taken in the forward: no logits are formed twice.

Where the loss of a token depends on its own log-prob alone (every supervised objective), its slope is known as soon as
the log-prob is. So a chunk of tokens against the whole vocabulary gives loss and gradients in one go, and its logits
are spent at once: three products of tokens x vocab x hidden, where `linear_logprob` with a trained head needs four.
(Chunks of tokens with gradients in the forward: Hsu et al. 2024, "Liger Kernel", arXiv:2410.10989, section 3.2.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from holdfast.ops.linear_logprob import as_product_sees, require_fit

# Logits of a chunk. Each chunk reads and writes the whole gradient of the weight, so few tokens cost traffic.
CHUNK = 1 << 24
FEWEST = 256
# Entries of the weight's gradient that half precision adds at once: the product is rounded before it is added.
ADDED = 1 << 22


def linear_objective(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    losses: Callable[[Tensor], Tensor],
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`losses(linear_logprob(...)).sum()`, and the log-probs.

    Half-precision inputs meet in matrix products only; sums over chunks are float32. Under `torch.autocast` the
    inputs are cast as for `F.linear`.

    Args:
        hidden: (tokens, hidden).
        weight: (vocab, hidden).
        targets: (tokens,) int64.
        losses: (n,) log-probs in nats -> (n,) losses, each of its own log-prob alone.
        bias, softcap, logit_scale: see `linear_logprob`.
        chunk: tokens handled at once; chosen for the vocabulary unless given.

    Returns:
        () the sum of the losses; and (tokens,) the log-probs, without gradient.

    Raises:
        ValueError, IndexError: as `linear_logprob`.
        RuntimeError: differentiated twice.
    """
    seen = as_product_sees(hidden), as_product_sees(weight), None if bias is None else as_product_sees(bias)
    require_fit(*seen[:2], targets, seen[2], softcap)
    if chunk is None:
        chunk = max(FEWEST, CHUNK // len(weight))
    # given as they are too: gradients that are summed up in float32 are not rounded on their way to float32 weights
    total, logps = _Objective.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, losses, softcap, logit_scale, chunk, torch.is_grad_enabled(), seen
    )
    return total, logps


class _Objective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        losses: Callable[[Tensor], Tensor],
        softcap: float | None,
        logit_scale: float,
        chunk: int,
        grad_enabled: bool,
        seen: tuple[Tensor, Tensor, Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        hidden, weight, bias = seen
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        wants = [grad_enabled and needed for needed in ctx.needs_input_grad[:3]]
        gradients = [
            torch.zeros(tensor.shape, dtype=wide, device=hidden.device)
            if wanted and tensor is not None
            else None
            for tensor, wanted in zip((hidden, weight, bias), wants, strict=True)
        ]
        logps = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            total += _chunk(
                hidden[rows], weight, bias, targets[rows], losses, softcap, logit_scale, logps[rows],
                gradients[0] if gradients[0] is None else gradients[0][rows], gradients[1], gradients[2],
            )  # fmt: skip
        ctx.gradients = gradients
        ctx.mark_non_differentiable(logps)
        return total, logps

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or ctx.gradients is None:
            raise RuntimeError("the gradients of linear_objective are spent once, and have no derivative")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [
            None if gradient is None else gradient.mul_(upstream).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None, None, None, None, None


def _chunk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    losses: Callable[[Tensor], Tensor],
    softcap: float | None,
    logit_scale: float,
    logps: Tensor,
    to_hidden: Tensor | None,
    to_weight: Tensor | None,
    to_bias: Tensor | None,
) -> Tensor:
    """The losses' sum of a chunk; writes its log-probs, and adds to the gradients that are wanted."""
    product = torch.mm(hidden, weight.t()) if bias is None else torch.addmm(bias, hidden, weight.t())
    logits = product.to(logps.dtype)
    if logit_scale != 1.0:
        logits = logits.mul_(logit_scale)
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    column = targets.unsqueeze(1)
    maximum = logits.amax(1, keepdim=True)
    target = logits.gather(1, column)
    slope = None if softcap is None else (logits / softcap).square_().neg_().add_(1)
    exponentials = logits.sub_(maximum).exp_()
    mass = exponentials.sum(1, keepdim=True)
    torch.sub(target - maximum, mass.log(), out=logps.unsqueeze(1))
    with torch.enable_grad():
        own = logps.detach().requires_grad_()
        loss = losses(own).sum()
        (by_logp,) = torch.autograd.grad(loss, own)
    if to_hidden is None and to_weight is None and to_bias is None:
        return loss.detach()
    # d logp / d logits is one-hot less softmax; the target's entry as -expm1(logp), which loses no digits
    by_logits = exponentials.div_(mass).neg_().scatter_(1, column, -logps.expm1().unsqueeze(1))
    by_logits = by_logits.mul_(by_logp.unsqueeze(1))
    if slope is not None:
        by_logits = by_logits.mul_(slope)
    if logit_scale != 1.0:
        by_logits = by_logits.mul_(logit_scale)
    if to_bias is not None:
        to_bias += by_logits.sum(0)
    half = hidden.dtype != logps.dtype
    narrow = product.copy_(by_logits) if half else by_logits  # the product's memory is free again
    if to_hidden is not None:
        to_hidden.copy_(torch.mm(narrow, weight))
    if to_weight is not None and half:
        step = max(1, ADDED // weight.shape[1])
        for entries in (slice(start, start + step) for start in range(0, len(weight), step)):
            to_weight[entries] += torch.mm(narrow[:, entries].t(), hidden)
    elif to_weight is not None:
        to_weight.addmm_(narrow.t(), hidden)
    return loss.detach()
