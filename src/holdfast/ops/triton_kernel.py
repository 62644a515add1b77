"""`linear_logprob` on a GPU, in Triton: the (tokens, vocab) logits never exist.

After Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models" (arXiv:2411.09009), but with
no locks and no atomics, so that equal inputs give equal bits:

- Forward. A program takes a block of tokens through a slice of the vocabulary, a tile of logits at a time,
  and keeps each token's maximum and sum of exponentials. The slices are at most `SLICES` a token, whatever
  the vocabulary, and torch adds them up.
- Backward, a slab of the vocabulary at a time. One kernel forms the slab's logits again and writes their
  gradients, the coefficients, in the inputs' dtype; two more multiply the coefficients by the weight and by
  the hidden states. Each program of those owns its part of the result.

Why a slab: an accumulator of (block of tokens, hidden) does not fit in a core, so a kernel that forms logits
and adds up a gradient at once must form each logit again for every slice of the hidden size, or add to the
result in memory after every tile, a traffic several times what the matrix units can wait for. A slab of
`SLAB` coefficients is written and read once, serves both gradients, and takes the same memory at any size of
the vocabulary. All in all a trained head takes four matrix products instead of plain torch's three, a frozen
one three instead of two, and neither makes an element-wise pass over whole logits.

A tile is left out of both gradients when upstream is zero for all its tokens, which changes nothing, or in
half precision when it is negligible to all of them: it holds no target, and less than `SKIPPED` of the
dtype's resolution, in proportion to its width, of the token's probability. The tiles left out then hold less
than `SKIPPED · finfo(dtype).eps` of it together (2^-10 in bfloat16). That bounds the error of a token's
gradient by `|upstream · logit_scale|` times that mass times the largest entry of the weight: a quarter of
what rounding the coefficients may do. The paper skips by single entries, below 2^-12 each: those can add up
to most of the softmax, and to all of it while a model is uncertain.
"""

# The kernels' arguments have the types of another language, whose package is neither typed nor everywhere.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Parts of the vocabulary that one token's logsumexp is made of: enough programs for a GPU at few tokens.
SLICES = 128
# Coefficients that the backward holds at a time, and the fewest entries of the vocabulary they may span: each
# slab adds to a (tokens, hidden) sum; narrower, that traffic is felt.
SLAB = 1 << 26
NARROWEST_SLAB = 1024
# Of a token's probability, times the dtype's resolution: what half precision may leave out of the gradients.
SKIPPED = 1 / 8
# Rows of tiles that are at work on the same columns at a time, to find them in the cache.
GROUP = tl.constexpr(8)
# Numbers that change from batch to batch: a kernel compiled for one size must serve the next.
SIZES = [
    "begin",
    "tokens",
    "vocab",
    "entries",
    "slices",
    "slice_blocks",
    "token_blocks",
    "vocab_blocks",
    "row",
]


class Blocks(NamedTuple):
    """The tiles of the matrix products; every size a power of two from 16 up, `step` dividing the others."""

    tokens: int
    vocab: int
    hidden: int
    step: int  # of the dimension that is summed over
    warps: int
    stages: int  # loads in flight

    def compilation(self, *, indirect: bool = False) -> dict[str, int]:
        """Triton's options; `indirect` where one load says what to load next, and the stages go to both."""
        stages = 2 * self.stages - 1 if indirect else self.stages
        return {"num_warps": self.warps, "num_stages": stages, "enable_fp_fusion": True}


def blocks_for(dtype: torch.dtype, shared_memory: int, *, capped: bool) -> Blocks:
    """Tiles for a GPU that lets a block of threads have `shared_memory` bytes, and a head with or without cap.

    Compiled for compute capabilities 8.0 to 12.0 all fit the shared memory, and in half precision for A100
    and H100 the registers: those 256 columns would overflow with a cap, and on an A100 at all. The hidden
    size plays no part: it is summed over in steps, and split where it is an output.
    """
    if dtype == torch.float32:  # no tensor cores: products are taken in full float32
        return Blocks(tokens=64, vocab=64, hidden=64, step=32, warps=4, stages=3)
    if shared_memory >= 200 * 1024 and not capped:  # H100 and later
        return Blocks(tokens=128, vocab=256, hidden=128, step=64, warps=8, stages=3)
    if shared_memory >= 160 * 1024:  # A100
        return Blocks(tokens=128, vocab=128, hidden=128, step=64, warps=8, stages=4)
    return Blocks(tokens=128, vocab=128, hidden=128, step=32, warps=8, stages=4)


def linear_logprob_triton(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    blocks: Blocks | None = None,
    width: int | None = None,
) -> Tensor:
    """`linear_logprob_reference` in O(tokens · (hidden + width)) memory besides the gradients.

    Logits are float32, never rounded to the inputs' dtype; float32 inputs meet in full float32, not TF32. Only
    the gradients that autograd asks for are computed; differentiating those is a RuntimeError.

    Args:
        hidden: (tokens, hidden), float16, bfloat16 or float32, on a CUDA GPU; on a CPU only under Triton's
            interpreter.
        weight: (vocab, hidden).
        targets: (tokens,) int64. Not checked: a target outside the vocabulary gives NaN.
        bias: (vocab,).
        blocks: tiles of the matrix products; `blocks_for` the dtype and the GPU unless given.
        width: vocabulary entries that the backward holds at a time; chosen for the tokens unless given.

    Returns:
        (tokens,) float32 log-probabilities in nats.

    Raises:
        ValueError: float64 inputs, tensors on several devices, or on none that the kernels run on.
    """
    if hidden.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(
            f"the Triton kernels take float16, bfloat16 and float32, got {hidden.dtype}: "
            "use implementation='chunked'"
        )
    devices = {t.device for t in (hidden, weight, targets, bias) if t is not None}
    if len(devices) > 1:
        raise ValueError(f"all tensors must be on one device, got {', '.join(sorted(map(str, devices)))}")
    if hidden.device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f"the Triton kernels need a CUDA GPU, and the tensors are on {hidden.device}: use "
            "implementation='auto'; to try the kernels without a GPU, set TRITON_INTERPRET=1 at the start"
        )
    if blocks is None:
        blocks = blocks_for(hidden.dtype, _shared_memory(hidden.device), capped=softcap is not None)
    cap, scale = None if softcap is None else float(softcap), float(logit_scale)
    logprob: Tensor = _TritonLogprob.apply(hidden, weight, bias, targets, cap, scale, blocks, width)
    return logprob


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes that a block of threads may have."""
    if device.type != "cuda":
        return 0
    index = torch.cuda.current_device() if device.index is None else device.index
    memory: int = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return memory


class _TritonLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        logit_scale: float,
        blocks: Blocks,
        width: int | None,
    ) -> Tensor:
        hidden, weight, targets = hidden.contiguous(), weight.contiguous(), targets.contiguous()
        bias = None if bias is None else bias.contiguous()
        (tokens, size), vocab = hidden.shape, len(weight)
        slice_blocks = triton.cdiv(triton.cdiv(vocab, blocks.vocab), SLICES)
        slices = triton.cdiv(vocab, blocks.vocab * slice_blocks)
        target_logit = hidden.new_full((tokens,), torch.nan, dtype=torch.float32)
        maxima = hidden.new_empty((slices, tokens), dtype=torch.float32)
        totals = torch.empty_like(maxima)
        if tokens:
            with torch.cuda.device_of(hidden):
                _forward_kernel[(triton.cdiv(tokens, blocks.tokens) * slices,)](
                    hidden, weight, bias, targets, target_logit, maxima, totals,
                    tokens, vocab, slices, slice_blocks, logit_scale,
                    BLOCK_T=blocks.tokens, BLOCK_V=blocks.vocab, STEP=blocks.step, SIZE=size, SOFTCAP=softcap,
                    **blocks.compilation(),
                )  # fmt: skip
        # The logsumexp stays in its two parts: their sum rounds `log(total)` away where logits are large.
        maximum = maxima.amax(0)
        total = totals.mul_(maxima.sub_(maximum).exp_()).sum(0)
        ctx.save_for_backward(hidden, weight, bias, targets, maximum, total)
        ctx.constants = softcap, logit_scale, blocks, width
        return target_logit - maximum - total.log()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # torch's `once_differentiable` lets a second derivative through as zero where upstream is a constant.
        if torch.is_grad_enabled():
            raise RuntimeError("the kernels' gradients have no derivative: use implementation='reference'")
        hidden, weight, bias, targets, maximum, total = ctx.saved_tensors
        softcap, logit_scale, blocks, width = ctx.constants
        (tokens, size), vocab = hidden.shape, len(weight)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wants_hidden else None
        fresh = torch.empty_like if tokens else torch.zeros_like
        d_weight = fresh(weight) if wants_weight else None
        d_bias = fresh(bias) if wants_bias else None
        token_blocks = triton.cdiv(tokens, blocks.tokens)
        rows = token_blocks * blocks.tokens
        if width is None:
            width = max(NARROWEST_SLAB, SLAB // max(1, rows))
        width = triton.cdiv(min(width, vocab), blocks.vocab) * blocks.vocab
        slab = hidden.new_empty((rows, width))
        # A block of tokens that has no weight in the loss keeps its zeros in both.
        active = hidden.new_zeros((token_blocks, width // blocks.vocab), dtype=torch.int32)
        sums = hidden.new_zeros((token_blocks, width), dtype=torch.float32) if wants_bias else None
        skipped = 0.0 if hidden.dtype == torch.float32 else SKIPPED * torch.finfo(hidden.dtype).eps
        upstream = (upstream * logit_scale).contiguous()
        sizes = {"BLOCK_T": blocks.tokens, "BLOCK_V": blocks.vocab, "STEP": blocks.step, "SIZE": size}
        options = {"BLOCK_H": blocks.hidden, **sizes, **blocks.compilation(indirect=True)}
        for begin in range(0, vocab if tokens else 0, width):
            entries = min(width, vocab - begin)
            part = slice(begin, begin + entries)
            vocab_blocks = triton.cdiv(entries, blocks.vocab)
            with torch.cuda.device_of(hidden):
                _coefficient_kernel[(token_blocks * vocab_blocks,)](
                    hidden, weight, bias, targets, upstream, maximum, total, slab, sums, active,
                    begin, tokens, vocab, width, width // blocks.vocab, vocab_blocks,
                    logit_scale, skipped * blocks.vocab / vocab,
                    SOFTCAP=softcap, **sizes, **blocks.compilation(),
                )  # fmt: skip
                counted = active[:, :vocab_blocks]
                if d_bias is not None and sums is not None:
                    d_bias[part] = sums[:, :entries].sum(0)
                if d_hidden is not None:
                    _hidden_kernel[(token_blocks * triton.cdiv(size, blocks.hidden),)](
                        d_hidden, slab, weight[part], *_in_order(counted), tokens, entries, width, vocab_blocks,
                        **options,
                    )  # fmt: skip
                if d_weight is not None:
                    _weight_kernel[(vocab_blocks * triton.cdiv(size, blocks.hidden),)](
                        d_weight[part], slab, hidden, *_in_order(counted.t()), tokens, entries, width,
                        token_blocks, vocab_blocks, **options,
                    )  # fmt: skip
        d_hidden = None if d_hidden is None else d_hidden.to(hidden.dtype)
        return d_hidden, d_weight, d_bias, None, None, None, None, None


def _in_order(active: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row, the columns with those that are active first, in their order, and how many are."""
    order = active.contiguous().argsort(dim=1, descending=True, stable=True)
    return order, active.sum(1, dtype=torch.int32)


@triton.jit
def _tanh(x):
    # exp loses the small arguments: there, the polynomial of Cephes' tanhf (Moshier 1989).
    square = x * x
    series = -5.70498872745e-3 * square + 2.06390887954e-2
    series = series * square - 5.37397155531e-2
    series = series * square + 1.33314422036e-1
    series = series * square - 3.33332819422e-1
    large = 1 - 2 / (tl.exp(2 * tl.abs(x)) + 1)
    return tl.where(tl.abs(x) < 0.625, x + x * square * series, tl.where(x < 0, -large, large))


# Triton decides when it decorates, by TRITON_INTERPRET.
INTERPRETED = tl.constexpr(not isinstance(_tanh, triton.JITFunction))


@triton.jit
def _dot(a, b, total):
    """`total + a @ b`; every product and sum in float32."""
    if INTERPRETED:  # there, the bits of a bfloat16 are multiplied as if they were a whole number
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _place(rows, columns):
    """This program's place in a grid of (rows, columns); neighbours in time share both operands."""
    program = tl.program_id(0)
    first = program // (GROUP * columns) * GROUP
    height = tl.minimum(rows - first, GROUP)
    within = program % (GROUP * columns)
    return first + within % height, within // height


@triton.jit
def _logits(
    hidden, weight, bias, rows, entries, tokens, vocab, logit_scale,
    BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, STEP: tl.constexpr, SIZE: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """(BLOCK_T, BLOCK_V) logits; -inf past the vocabulary, those of the last token past the tokens."""
    units = tl.arange(0, STEP)
    row = tl.minimum(rows, tokens - 1).to(tl.int64)
    entry = tl.minimum(entries, vocab - 1).to(tl.int64)
    left = hidden + row[:, None] * SIZE + units[None, :]
    right = weight + entry[None, :] * SIZE + units[:, None]
    logits = tl.zeros((BLOCK_T, BLOCK_V), dtype=tl.float32)
    for start in range(0, SIZE, STEP):
        if SIZE % STEP == 0:
            a = tl.load(left + start)
            b = tl.load(right + start)
        else:
            a = tl.load(left + start, mask=units[None, :] < SIZE - start, other=0.0)
            b = tl.load(right + start, mask=units[:, None] < SIZE - start, other=0.0)
        logits = _dot(a, b, logits)
    if bias is not None:
        logits += tl.load(bias + entry).to(tl.float32)[None, :]
    logits *= logit_scale
    if SOFTCAP is not None:
        logits = _tanh(logits / SOFTCAP) * SOFTCAP
    return tl.where(entries[None, :] < vocab, logits, float("-inf"))


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    hidden, weight, bias, targets,
    target_logits,  # (tokens,), NaN: written where the target is in the vocabulary
    maxima,  # (slices, tokens)
    totals,  # (slices, tokens): sums of exp(logit - maximum)
    tokens, vocab, slices, slice_blocks, logit_scale,
    BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, STEP: tl.constexpr, SIZE: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    token_block, part = _place(tl.cdiv(tokens, BLOCK_T), slices)
    rows = token_block * BLOCK_T + tl.arange(0, BLOCK_T)
    present = rows < tokens
    target = tl.load(targets + rows, mask=present, other=-1)
    # Finite where -inf would be natural: a tile of logits that are all -inf then adds 0, not NaN.
    maximum = tl.full((BLOCK_T,), -3.4028234663852886e38, dtype=tl.float32)
    total = tl.zeros((BLOCK_T,), dtype=tl.float32)
    target_logit = tl.zeros((BLOCK_T,), dtype=tl.float32)
    first = part * slice_blocks
    last = tl.minimum(first + slice_blocks, tl.cdiv(vocab, BLOCK_V))
    for block in range(first, last):
        entries = block * BLOCK_V + tl.arange(0, BLOCK_V)
        logits = _logits(
            hidden, weight, bias, rows, entries, tokens, vocab, logit_scale, BLOCK_T, BLOCK_V, STEP, SIZE, SOFTCAP
        )  # fmt: skip
        target_logit += tl.sum(tl.where(entries[None, :] == target[:, None], logits, 0.0), 1)
        previous = maximum
        maximum = tl.maximum(previous, tl.max(logits, 1))
        total = total * tl.exp(previous - maximum) + tl.sum(tl.exp(logits - maximum[:, None]), 1)
    inside = (target >= first * BLOCK_V) & (target < tl.minimum(last * BLOCK_V, vocab))
    tl.store(target_logits + rows, target_logit, mask=present & inside)
    offset = part.to(tl.int64) * tokens
    tl.store(maxima + offset + rows, maximum, mask=present)
    tl.store(totals + offset + rows, total, mask=present)


@triton.jit(do_not_specialize=SIZES)
def _coefficient_kernel(
    hidden, weight, bias, targets,
    upstream,  # (tokens,), already times logit_scale
    maximum, total,
    slab,  # (token blocks · BLOCK_T, width): written where a tile counts
    sums,  # (token blocks, width) float32: the coefficients summed over each block's tokens
    active,  # (token blocks, row) int32: 1 where a tile counts
    begin,  # the slab's first vocabulary entry
    tokens, vocab, width, row, vocab_blocks, logit_scale, negligible,
    BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, STEP: tl.constexpr, SIZE: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    token_block, vocab_block = _place(tl.cdiv(tokens, BLOCK_T), vocab_blocks)
    rows = token_block * BLOCK_T + tl.arange(0, BLOCK_T)
    present = rows < tokens
    factor = tl.load(upstream + rows, mask=present, other=0.0)
    if tl.max((factor != 0).to(tl.int32), 0) > 0:
        columns = vocab_block * BLOCK_V + tl.arange(0, BLOCK_V)
        entries = begin + columns
        logits = _logits(
            hidden, weight, bias, rows, entries, tokens, vocab, logit_scale, BLOCK_T, BLOCK_V, STEP, SIZE, SOFTCAP
        )  # fmt: skip
        target = tl.load(targets + rows, mask=present, other=-1)
        own = entries[None, :] == target[:, None]
        # Past the tokens the softmax is 0, and with it every coefficient.
        highest = tl.load(maximum + rows, mask=present, other=float("inf"))
        share = 1 / tl.load(total + rows, mask=present, other=1.0)
        softmax = tl.exp(logits - highest[:, None]) * share[:, None]
        # By the logits: upstream · (onehot(target) - softmax), times the slope of the cap.
        coefficients = factor[:, None] * (tl.where(own, 1.0, 0.0) - softmax)
        if SOFTCAP is not None:
            bounded = tl.where(entries[None, :] < vocab, logits, 0.0) / SOFTCAP
            coefficients *= 1 - bounded * bounded
        if sums is not None:
            tl.store(sums + token_block.to(tl.int64) * width + columns, tl.sum(coefficients, 0))
        # "Not below" rather than "at least": a NaN must be seen.
        weighty = (tl.sum(softmax, 1) < negligible) == 0
        counts = (factor != 0) & (weighty | (tl.max(own.to(tl.int32), 1) > 0))
        some = tl.max(counts.to(tl.int32), 0)
        tl.store(active + token_block * row + vocab_block, some)
        if some > 0:
            place = slab + rows.to(tl.int64)[:, None] * width + columns[None, :]
            tl.store(place, coefficients.to(slab.dtype.element_ty))


@triton.jit(do_not_specialize=SIZES)
def _hidden_kernel(
    d_hidden,  # (tokens, hidden) float32: added to
    slab,
    weight,  # from the slab's first entry on
    order,  # (token blocks, vocab blocks): those that count come first
    counts,  # (token blocks,)
    tokens, entries, width, vocab_blocks,
    BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_H: tl.constexpr, STEP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    token_block, unit_block = _place(tl.cdiv(tokens, BLOCK_T), tl.cdiv(SIZE, BLOCK_H))
    count = tl.load(counts + token_block)
    if count > 0:
        rows = (token_block * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
        units = unit_block * BLOCK_H + tl.arange(0, BLOCK_H)
        left = slab + rows[:, None] * width
        right = weight + units[None, :]
        result = tl.zeros((BLOCK_T, BLOCK_H), dtype=tl.float32)
        for step in range(count * (BLOCK_V // STEP)):
            block = tl.load(order + token_block * vocab_blocks + step // (BLOCK_V // STEP))
            columns = block * BLOCK_V + step % (BLOCK_V // STEP) * STEP + tl.arange(0, STEP)
            a = tl.load(left + columns[None, :])
            inside = (columns[:, None] < entries) & (units[None, :] < SIZE)
            b = tl.load(right + columns[:, None] * SIZE, mask=inside, other=0.0)
            result = _dot(a, b, result)
        place = d_hidden + rows[:, None] * SIZE + units[None, :]
        inside = (rows[:, None] < tokens) & (units[None, :] < SIZE)
        tl.store(place, tl.load(place, mask=inside, other=0.0) + result, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _weight_kernel(
    d_weight,  # (vocab, hidden), from the slab's first entry on: written
    slab, hidden,
    order,  # (vocab blocks, token blocks): those that count come first
    counts,  # (vocab blocks,)
    tokens, entries, width, token_blocks, vocab_blocks,
    BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_H: tl.constexpr, STEP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    vocab_block, unit_block = _place(vocab_blocks, tl.cdiv(SIZE, BLOCK_H))
    count = tl.load(counts + vocab_block)
    columns = vocab_block * BLOCK_V + tl.arange(0, BLOCK_V)
    units = unit_block * BLOCK_H + tl.arange(0, BLOCK_H)
    left = slab + columns[:, None]
    right = hidden + units[None, :]
    result = tl.zeros((BLOCK_V, BLOCK_H), dtype=tl.float32)
    for step in range(count * (BLOCK_T // STEP)):
        block = tl.load(order + vocab_block * token_blocks + step // (BLOCK_T // STEP))
        rows = block * BLOCK_T + step % (BLOCK_T // STEP) * STEP + tl.arange(0, STEP)
        a = tl.load(left + rows[None, :] * width)
        inside = (rows[:, None] < tokens) & (units[None, :] < SIZE)
        b = tl.load(right + rows[:, None] * SIZE, mask=inside, other=0.0)
        result = _dot(a, b, result)
    place = d_weight + columns.to(tl.int64)[:, None] * SIZE + units[None, :]
    inside = (columns[:, None] < entries) & (units[None, :] < SIZE)
    tl.store(place, result.to(d_weight.dtype.element_ty), mask=inside)
