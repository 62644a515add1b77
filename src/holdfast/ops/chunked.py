"""`linear_logprob` a block of the vocabulary at a time: the (tokens, vocab) logits never exist.

The forward keeps a running maximum and sum of exponentials per token (Milakov & Gimelshein 2018, "Online
normalizer calculation for softmax", arXiv:1805.02867). The gradient by a token's hidden state is its target's
row of the weight less the softmax's mean of all rows, times one number from upstream. That mean is attention
over the vocabulary: the forward takes it from the same blocks, as FlashAttention does (Dao et al. 2022,
arXiv:2205.14135), and a frozen head costs no more matrix products than plain torch. A trained head keeps the
exponentials of as many blocks as `KEEP` allows, and its weight's gradient is one product with each; the
blocks beyond are formed once more in the backward, each spent at once on its rows of that gradient (Wijmans
et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models", arXiv:2411.09009).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Logits per block. On a CPU the element-wise passes want a block that stays in the cache, the matrix products
# one that is not thin: of budgets from 2^18 to 2^23, at 512 to 4096 tokens, 2^20 and 2^21 were the fastest in
# float32 and bfloat16 alike, 2^18 and 2^23 up to a fifth slower. A GPU needs larger products to be kept busy.
CPU_BLOCK = 1 << 20
GPU_BLOCK = 1 << 25
# Each block adds to a (tokens, hidden) sum; narrower than this, that traffic is felt.
NARROWEST_BLOCK = 512
# Rows of a block start at multiples of this: a float32 product into rows of 1018 takes 1.4 times that into 1024.
ALIGNED = 64
WIDE = (torch.float32, torch.float64)
# Bytes of exponentials that wait for the backward, and spare it a product: of 2,000 tokens, a vocabulary of 32k.
KEEP = 1 << 28


def block_width(tokens: int, vocab: int, device: torch.device) -> int:
    """Vocabulary entries per block."""
    logits = CPU_BLOCK if device.type == "cpu" else GPU_BLOCK
    return min(vocab, max(NARROWEST_BLOCK, logits // max(1, tokens) // ALIGNED * ALIGNED))


def linear_logprob_chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    width: int | None = None,
    dtype: torch.dtype | None = None,
    keep: int = KEEP,
) -> Tensor:
    """`linear_logprob_reference` in O(tokens · (hidden + width)) memory besides the gradients and `keep`.

    Half precision is for matrix products only, whose inputs are rounded once as `F.linear` rounds its own; all
    else is float32 (float64 for float64 inputs). Only the gradients that autograd asks for are computed;
    differentiating those (`create_graph=True`) is a RuntimeError.

    Args:
        hidden: (tokens, hidden).
        weight: (vocab, hidden).
        targets: (tokens,) int64. Not checked: a target outside the vocabulary gives NaN.
        bias: (vocab,).
        width: vocabulary entries per block; chosen for the device and the number of tokens unless given.
        dtype: that the inputs are cast to for the products; None leaves them as they are.
        keep: bytes of exponentials that may wait for the backward where the weight is trained, in float32 or
            better.

    Returns:
        (tokens,) log-probabilities in nats.
    """
    if width is None:
        width = block_width(len(hidden), len(weight), hidden.device)
    if dtype is None:
        dtype = hidden.dtype
    grad_enabled = torch.is_grad_enabled()
    wants_hidden = grad_enabled and hidden.requires_grad
    spares_product = wants_hidden and weight.requires_grad and not (bias is not None and bias.requires_grad)
    if not (spares_product and weight.dtype in WIDE and dtype != torch.float16):
        keep = (
            0  # the factors of a kept block would underflow in float16, and its sums round in half precision
        )
    logprob: Tensor = _ChunkedLogprob.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, softcap, logit_scale, width, dtype, keep, wants_hidden
    )
    return logprob


class _Block(NamedTuple):
    """The logits of part of the vocabulary, and where in it each token's target stands."""

    entries: slice
    logits: Tensor  # (tokens, width), scaled and capped; the next block overwrites it
    column: Tensor  # (tokens, 1) of the target; any column when the target is in another block
    inside: Tensor  # (tokens, 1) bool: the target is in this block


class _Blocks:
    """The logits block by block, in memory that every block uses again.

    Every matrix product here writes into memory it is given; autocast leaves such products alone.
    """

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
        self._half = hidden.dtype != self.dtype
        self._stride = -(-width // ALIGNED) * ALIGNED
        self._logits = self._memory(self.dtype)
        self._product = self._memory(hidden.dtype) if self._half else self._logits
        self._slope: Tensor | None = None
        self._rows: Tensor | None = None

    def __iter__(self) -> Iterator[_Block]:
        return self.beyond(0)

    def beyond(self, first: int) -> Iterator[_Block]:
        """The blocks, from number `first` on."""
        vocab = len(self.weight)
        for start in range(first * self.width, vocab, self.width):
            entries = slice(start, min(start + self.width, vocab))
            column, last = self.targets.unsqueeze(1) - start, entries.stop - start - 1
            inside = (column >= 0) & (column <= last)
            yield _Block(entries, self._form(entries), column.clamp_(0, last), inside)

    def _form(self, entries: slice) -> Tensor:
        product, weight = self._view(self._product, entries), self.weight[entries]
        if self.bias is None:
            torch.mm(self.hidden, weight.t(), out=product)
        else:
            torch.addmm(self.bias[entries], self.hidden, weight.t(), out=product)
        logits = self._view(self._logits, entries)
        if self._half:
            logits.copy_(product)
        if self.logit_scale != 1.0:
            logits.mul_(self.logit_scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def cap_slope(self, block: _Block) -> Tensor | None:
        """(tokens, width) derivative of the cap at the block's logits; None without a cap."""
        if self.softcap is None:
            return None
        if self._slope is None:
            self._slope = self._memory(self.dtype)
        slope = self._view(self._slope, block.entries).copy_(block.logits)
        return slope.div_(self.softcap).square_().neg_().add_(1)

    def add_rows(self, total: Tensor, coefficients: Tensor, entries: slice) -> None:
        """`total += coefficients @ weight[entries]`: (tokens, hidden) from (tokens, width), as the products see it."""
        if not self._half:
            total.addmm_(coefficients, self.weight[entries])
            return
        if self._rows is None:
            self._rows = torch.empty_like(self.hidden)
        total += torch.mm(coefficients, self.weight[entries], out=self._rows)

    def set_rows(self, out: Tensor, coefficients: Tensor, factor: Tensor, entries: slice) -> None:
        """`out[entries] = coefficients.T @ factor`: rows of (vocab, hidden) from (tokens, width), (tokens, hidden)."""
        if out.dtype == factor.dtype:
            torch.mm(coefficients.t(), factor, out=out[entries])
        else:
            out[entries] = torch.mm(coefficients.t(), factor)

    def set_kept_rows(
        self, out: Tensor, kept: Sequence[Tensor], maximum: Tensor, per_exponential: Tensor, own: Tensor
    ) -> None:
        """The rows of (vocab, hidden) that the first blocks hold, from their exponentials: see the forward.

        `per_exponential` and `own` are (tokens, 1), what a token's exponentials and its target's own row count for.
        """
        factor, former = torch.empty_like(self.hidden), None
        for number, (exponentials, relative_to) in enumerate(zip(kept[::2], kept[1::2], strict=True)):
            start = number * self.width
            entries = slice(start, start + exponentials.shape[1])
            scale = per_exponential * (relative_to - maximum).exp_()
            if former is None or self.hidden.device.type != "cpu":  # where looking at them would wait
                factor.copy_(self.hidden * scale)
            else:  # few have: the n-th block holds a token's largest logit so far about once in n times
                changed = (relative_to != former).squeeze(1).nonzero().squeeze(1)
                factor[changed] = (self.hidden[changed] * scale[changed]).to(factor.dtype)
            former = relative_to
            self.set_rows(out, exponentials, factor, entries)
        within = self.targets < entries.stop
        rows = self.hidden * own.where(within.unsqueeze(1), 0)
        out.index_put_((self.targets.where(within, 0),), rows.to(out.dtype), accumulate=True)

    def rounded(self, block: Tensor, entries: slice) -> Tensor:
        """`block` as the products see it, in the memory of the product that it came from."""
        return self._view(self._product, entries).copy_(block) if self._half else block

    def set_aside(self) -> None:
        """Leave the last `rounded` block its memory; the next ones get another."""
        self._product = self._memory(self.hidden.dtype)
        if not self._half:
            self._logits = self._product

    def _memory(self, dtype: torch.dtype) -> Tensor:
        return self.hidden.new_empty((len(self.hidden), self._stride), dtype=dtype)

    def _view(self, memory: Tensor, entries: slice) -> Tensor:
        return memory[:, : entries.stop - entries.start]


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
        dtype: torch.dtype,
        keep: int,
        wants_hidden: bool,
    ) -> Tensor:
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        blocks = _Blocks(hidden, weight, bias, targets, softcap, logit_scale, width)
        # Finite where -inf would be natural: a block of logits that are all -inf then adds 0, not NaN.
        maximum = hidden.new_full((len(hidden), 1), torch.finfo(blocks.dtype).min, dtype=blocks.dtype)
        total = torch.zeros_like(maximum)
        target_logit = torch.full_like(maximum, torch.nan)
        # The rows of all entries but the target, each times exp(logit - maximum) and the slope of the cap.
        # The target's own row, often most of the gradient, stays out of the rounded products and joins below.
        others = hidden.new_zeros(hidden.shape, dtype=blocks.dtype) if wants_hidden else None
        kept: list[Tensor] = []  # of each block, those exponentials, and the maximum they are relative to
        for block in blocks:
            logits, column, inside = block.logits, block.column, block.inside
            target_logit = torch.where(inside, logits.gather(1, column), target_logit)
            slope = None if others is None else blocks.cap_slope(block)
            previous, maximum = maximum, torch.maximum(maximum, logits.amax(1, keepdim=True))
            shrink = (previous - maximum).exp_()
            exponentials = logits.sub_(maximum).exp_()
            total = total * shrink + exponentials.sum(1, keepdim=True)
            if others is not None:
                if slope is not None:
                    exponentials.mul_(slope)
                exponentials.scatter_(1, column, exponentials.gather(1, column).masked_fill_(inside, 0))
                coefficients = blocks.rounded(exponentials, block.entries)
                blocks.add_rows(others.mul_(shrink), coefficients, block.entries)
                keep -= coefficients.nbytes
                if keep > 0:
                    kept += coefficients, maximum
                    blocks.set_aside()
        logprob = target_logit - maximum - total.log()
        gradient = own = None
        if others is not None:
            own = -logprob.expm1()
            if softcap is not None:
                own *= 1 - (target_logit / softcap).square()
            gradient = others.div_(-total).addcmul_(own, weight[targets].to(blocks.dtype)).mul_(logit_scale)
        # The logsumexp stays in its two parts: their sum rounds `log(total)` away where logits are large.
        ctx.save_for_backward(hidden, weight, bias, targets, maximum, total, gradient, own, *kept)
        ctx.constants = softcap, logit_scale, width
        return logprob.squeeze(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # torch's `once_differentiable` lets a second derivative through as zero where upstream is a constant.
        if torch.is_grad_enabled():
            raise RuntimeError("the chunked gradients have no derivative: use implementation='reference'")
        hidden, weight, bias, targets, maximum, total, gradient, own, *kept = ctx.saved_tensors
        upstream = upstream.unsqueeze(1)
        d_hidden = None if gradient is None else (upstream * gradient).to(ctx.dtypes[0])
        d_weight = weight.new_empty(weight.shape, dtype=ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
        d_bias = bias.new_empty(bias.shape, dtype=ctx.dtypes[2]) if ctx.needs_input_grad[2] else None
        if d_weight is not None or d_bias is not None:
            blocks = _Blocks(hidden, weight, bias, targets, *ctx.constants)
            upstream = upstream * blocks.logit_scale
            per_exponential = -upstream / total
            if kept:
                assert d_weight is not None
                blocks.set_kept_rows(d_weight, kept, maximum, per_exponential, upstream * own)
            for block in blocks.beyond(len(kept) // 2):
                slope = blocks.cap_slope(block)
                # By the logits: upstream · (onehot(target) - softmax), times the slope of the cap.
                grad = block.logits.sub_(maximum).exp_().mul_(per_exponential)
                grad.scatter_add_(1, block.column, upstream.where(block.inside, 0))
                if slope is not None:
                    grad.mul_(slope)
                if d_bias is not None:
                    d_bias[block.entries] = grad.sum(0)
                if d_weight is not None:
                    blocks.set_rows(d_weight, blocks.rounded(grad, block.entries), hidden, block.entries)
        return d_hidden, d_weight, d_bias, None, None, None, None, None, None, None
