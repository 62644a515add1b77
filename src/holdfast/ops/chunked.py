"""`linear_logprob` a block of the vocabulary at a time: the (tokens, vocab) logits never exist.

The forward keeps a running maximum and sum of exponentials per token (Milakov & Gimelshein 2018, "Online
normalizer calculation for softmax", arXiv:1805.02867). The backward forms each block of logits again and spends
it on the gradients at once, as in "Cut Your Losses in Large-Vocabulary Language Models" (Wijmans et al. 2024,
arXiv:2411.09009): one more matrix product, in exchange for memory that is flat in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits per block. On a CPU the element-wise passes want a block that stays in the cache, the matrix products
# one that is not thin: of budgets from 2^18 to 2^23, at 512 to 4096 tokens, 2^20 and 2^21 were the fastest in
# float32 and bfloat16 alike, 2^18 and 2^23 up to a fifth slower. A GPU needs larger products to be kept busy.
CPU_BLOCK = 1 << 20
GPU_BLOCK = 1 << 25
# Each block adds to the gradient of all hidden states; narrower than this, that traffic is felt.
NARROWEST_BLOCK = 512


def block_width(tokens: int, vocab: int, device: torch.device) -> int:
    """Vocabulary entries per block."""
    logits = CPU_BLOCK if device.type == "cpu" else GPU_BLOCK
    return min(vocab, max(NARROWEST_BLOCK, logits // max(1, tokens)))


def linear_logprob_chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    width: int | None = None,
) -> Tensor:
    """`linear_logprob_reference` in O(tokens · (hidden + width)) memory besides the gradients.

    Half-precision inputs meet in matrix products only, each rounded once as `F.linear` rounds its own; all else
    is float32 (float64 for float64 inputs). Only the gradients that autograd asks for are computed; they cannot
    be differentiated again.

    Args:
        hidden: (tokens, hidden).
        weight: (vocab, hidden).
        targets: (tokens,) int64. Not checked: a target outside the vocabulary gives NaN.
        bias: (vocab,).
        width: vocabulary entries per block; chosen for the device and the number of tokens unless given.

    Returns:
        (tokens,) log-probabilities in nats.
    """
    if width is None:
        width = block_width(len(hidden), len(weight), hidden.device)
    arguments = hidden, weight, bias, targets, softcap, logit_scale, width, torch.is_grad_enabled() and hidden.requires_grad
    logprob: Tensor = _ChunkedLogprob.apply(*arguments)  # type: ignore[no-untyped-call]
    return logprob


class _Block(NamedTuple):
    """The logits of part of the vocabulary, and where in it each token's target stands."""

    entries: slice
    logits: Tensor  # (tokens, width), scaled and capped; the next block overwrites it
    column: Tensor  # (tokens, 1) of the target; any column when the target is in another block
    inside: Tensor  # (tokens, 1) bool: the target is in this block


class _Blocks:
    """The logits block by block, in memory that every block uses again."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        logit_scale: float,
        width: int,
    ) -> None:
        self.hidden, self.weight, self.bias, self.targets = hidden.contiguous(), weight, bias, targets
        self.softcap, self.logit_scale, self.width = softcap, logit_scale, width
        self.dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.half = hidden.dtype != self.dtype
        self._logits = self.memory(self.dtype)
        self._product = self.memory(hidden.dtype) if self.half else self._logits

    def memory(self, dtype: torch.dtype) -> Tensor:
        """Room for the largest block."""
        return self.hidden.new_empty(len(self.hidden) * self.width, dtype=dtype)

    def view(self, memory: Tensor, entries: slice) -> Tensor:
        """(tokens, width of `entries`), contiguous, in `memory`."""
        shape = len(self.hidden), entries.stop - entries.start
        return memory[: shape[0] * shape[1]].view(shape)

    def __iter__(self) -> Iterator[_Block]:
        vocab = len(self.weight)
        for start in range(0, vocab, self.width):
            entries = slice(start, min(start + self.width, vocab))
            column, last = self.targets.unsqueeze(1) - start, entries.stop - start - 1
            inside = (column >= 0) & (column <= last)
            yield _Block(entries, self._form(entries), column.clamp_(0, last), inside)

    def _form(self, entries: slice) -> Tensor:
        # Here and in the backward every product writes into memory it is given: autocast lets such products be.
        product, weight = self.view(self._product, entries), self.weight[entries]
        if self.bias is None:
            torch.mm(self.hidden, weight.t(), out=product)
        else:
            torch.addmm(self.bias[entries], self.hidden, weight.t(), out=product)
        logits = self.view(self._logits, entries)
        if self.half:
            logits.copy_(product)
        if self.logit_scale != 1.0:
            logits.mul_(self.logit_scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def in_input_dtype(self, block: Tensor, entries: slice) -> Tensor:
        """`block` as the matrix products want it, in the memory of the product it came from."""
        return self.view(self._product, entries).copy_(block) if self.half else block


class _ChunkedLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        logit_scale: float,
        width: int,
        wants_hidden: bool,
    ) -> Tensor:
        blocks = _Blocks(hidden, weight, bias, targets, softcap, logit_scale, width)
        # Finite where -inf would be natural: a block of logits that are all -inf then adds 0, not NaN.
        maximum = hidden.new_full((len(hidden), 1), torch.finfo(blocks.dtype).min, dtype=blocks.dtype)
        total = torch.zeros_like(maximum)
        target_logit = torch.full_like(maximum, torch.nan)
        # Sum of the other entries' rows, each times exp(logit - maximum) and the slope of its cap.
        others = hidden.new_zeros(hidden.shape, dtype=blocks.dtype) if wants_hidden else None
        cap = _CapSlope(blocks) if wants_hidden else None
        partial = torch.empty_like(blocks.hidden) if blocks.half and wants_hidden else None
        for entries, logits, column, inside in blocks:
            slope = cap(logits, entries) if cap else None
            target_logit = torch.where(inside, logits.gather(1, column), target_logit)
            previous, maximum = maximum, torch.maximum(maximum, logits.amax(1, keepdim=True))
            shrink = (previous - maximum).exp_()
            weights = logits.sub_(maximum).exp_()
            total = total * shrink + weights.sum(1, keepdim=True)
            if others is not None:
                if slope is not None: weights.mul_(slope)
                weights.scatter_(1, column, weights.gather(1, column).masked_fill_(inside, 0))
                weights = blocks.in_input_dtype(weights, entries)
                others.mul_(shrink)
                if partial is None:
                    others.addmm_(weights, weight[entries])
                else:
                    others += torch.mm(weights, weight[entries], out=partial)
        logprob = target_logit - maximum - total.log()
        gradient = None
        if others is not None:
            own = -torch.expm1(logprob)
            if softcap is not None: own *= 1 - (target_logit/softcap).square()
            gradient = others.div_(-total).addcmul_(own, weight[targets].to(blocks.dtype)).mul_(logit_scale)
        # Each token's logsumexp, in two parts: their sum would round `log(total)` away where logits are large.
        ctx.save_for_backward(hidden, weight, bias, targets, maximum, total, gradient)
        ctx.constants = softcap, logit_scale, width
        return logprob.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, maximum, total, gradient = ctx.saved_tensors
        upstream = upstream.unsqueeze(1)
        d_hidden = None if gradient is None else (upstream * gradient).to(hidden.dtype)
        _, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_weight = weight.new_empty(weight.shape) if wants_weight else None
        d_bias = bias.new_empty(bias.shape) if wants_bias else None
        if d_weight is not None or d_bias is not None:
            blocks = _Blocks(hidden, weight, bias, targets, *ctx.constants)
            cap = _CapSlope(blocks)
            upstream = upstream * blocks.logit_scale
            per_exponential = -upstream / total
            for entries, logits, column, inside in blocks:
                slope = cap(logits, entries)
                # By the logits: upstream · (onehot(target) - softmax), times the slope of the cap.
                grad = logits.sub_(maximum).exp_().mul_(per_exponential)
                grad.scatter_add_(1, column, upstream.where(inside, 0))
                if slope is not None:
                    grad.mul_(slope)
                if d_bias is not None:
                    d_bias[entries] = grad.sum(0)
                if d_weight is not None:
                    torch.mm(blocks.in_input_dtype(grad, entries).t(), blocks.hidden, out=d_weight[entries])
        return d_hidden, d_weight, d_bias, None, None, None, None, None


class _CapSlope:
    def __init__(self, blocks: _Blocks) -> None:
        self.blocks = blocks
        self._memory = None if blocks.softcap is None else blocks.memory(blocks.dtype)

    def __call__(self, logits: Tensor, entries: slice) -> Tensor | None:
        if self._memory is None:
            return None
        return self.blocks.view(self._memory, entries).copy_(logits).div_(self.blocks.softcap).square_().neg_().add_(1)
