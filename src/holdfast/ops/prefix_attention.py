"""Causal attention over flattened rows that share a prompt, on CPUs, by the kernel torch has for them.

Called part by part through autograd, that kernel's inputs are joined, masked, cast and kept for each part, and its
output twice. Here it is called for all parts in one step of the backward:

- what waits for the backward is queries, keys and values as they came, the output that the next projection keeps
  anyway, and one logsumexp a query and head;
- half precision is widened a row at a time, while it lies in the cache, where the processor has no matrix units: there
  the kernel takes longer in half precision than in float32 (docs/log.md). Its result is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.torch_version import TorchVersion

from holdfast.ops.attention_calls import Call, attention_calls

Mask = Callable[[int, int, int | None], Tensor]
# Queries of a call where a part is cut; of a causal part that is whole again; of the largest rejected part not cut.
CUT, WHOLE, UNCUT = 256, 640, 512
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
GROUPED = (2, 9)  # the first torch whose CPU kernel knows of grouped heads (pytorch/pytorch#157893)


class PrefixRow(NamedTuple):
    """Where the parts of a row lie among a batch's tokens."""

    causal: slice  # [prompt | chosen]
    prompt: int  # tokens of the prompt
    rejected: slice = slice(0, 0)  # empty where there is none


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Sequence[PrefixRow],
    mask: Mask,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Each causal part against itself, each rejected part against its row's prompt and itself.

    Args:
        query: (1, heads, tokens, size).
        key, value: (1, key_value_heads, tokens, size); `heads` is a multiple of `key_value_heads`.
        rows: of all tokens, each token in one part.
        mask: of (queries, keys, window) the rule of a call: (queries, keys) of `compute_dtype(query.dtype)`, 0 or -inf.
        scale: of the scores; None: size^-0.5.
        window: positions that a token sees, its own among them; None: all.

    Returns:
        (1, tokens, heads, size), contiguous, in the dtype of `query`.

    Raises:
        ValueError: if the parts are not all of the tokens.
        RuntimeError: differentiated twice.
    """
    if (found := sum(_length(part) for row in rows for part in (row.causal, row.rejected))) != query.shape[2]:
        raise ValueError(f"rows of {found} tokens were given for {query.shape[2]}")
    result: Tensor = _PrefixAttention.apply(query, key, value, rows, mask, scale, window)  # type: ignore[no-untyped-call]
    return result


def takes_prefix_attention(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether these are what `prefix_attention` is for.

    `torch.nn.attention.sdpa_kernel` without `FLASH_ATTENTION` turns it off, as it does the same kernel elsewhere.
    """
    return (
        not torch.compiler.is_compiling()
        # the kernel takes it that a head's numbers lie side by side
        and all(
            type(t) is Tensor and t.device.type == "cpu" and t.stride(-1) == 1 for t in (query, key, value)
        )
        and query.dtype == key.dtype == value.dtype
        and query.dtype in DTYPES
        and query.shape[-1] == value.shape[-1]
        and _is_on()
    )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What attention over inputs of `dtype` computes in."""
    return torch.float32 if dtype.itemsize == 2 and half_is_slower() else dtype


def widens(dtype: torch.dtype) -> bool:
    """Whether a model's attention over rows without padding, on a CPU, computes `dtype` in float32."""
    return _is_on() and compute_dtype(dtype) != dtype


@cache
def half_is_slower() -> bool:
    """Whether this machine's CPU attends faster in float32 than in half precision: x86 without matrix units."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX") and has_matrix_units() is False


def has_matrix_units() -> bool | None:
    """Whether the CPU has units for products of half precision (AMX); None where torch does not tell."""
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)  # none of torch's public functions
    return None if asked is None else bool(asked())


def _is_on() -> bool:
    """Whether the kernel may be called, and is what it should be."""
    flash: bool = torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
    return flash and _agrees()


@cache
def _agrees() -> bool:
    """Whether this torch's kernel is called as here, takes grouped heads, and computes what it should."""
    if TorchVersion(torch.__version__) < GROUPED:  # type: ignore[operator]
        return False  # it would read and write beyond keys and values
    float32: Any = {"dtype": torch.float32, "device": "cpu"}

    def as_it_is(tensor: Tensor) -> Tensor:
        return tensor

    # Whatever the first caller's surroundings are. A checkpointed layer's hooks would count what is saved here.
    hooks = torch.autograd.graph.saved_tensors_hooks(as_it_is, as_it_is)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False), hooks:
        draw = torch.Generator().manual_seed(0)
        inputs = [torch.randn(1, n, 5, 8, generator=draw, **float32).requires_grad_() for n in (4, 2, 2)]
        seen = torch.ones(5, 5, device="cpu").tril().bool()
        seen[3:, 2] = False  # a prompt of two tokens, a chosen one, two rejected ones
        mask = torch.zeros(2, 4, **float32).masked_fill_(~seen[3:, [0, 1, 3, 4]], -torch.inf)
        try:
            query, key, value = inputs
            found = prefix_attention(
                query, key, value, [PrefixRow(slice(0, 3), 2, slice(3, 5))], lambda *given: mask
            )
            gradients = torch.autograd.grad(found.sum(), inputs)
        except (AttributeError, RuntimeError, TypeError):
            return False
        key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
        true = F.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2)
        expected = torch.autograd.grad(true.sum(), inputs)
    pairs = zip((found, *gradients), (true, *expected), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


def _attend(*args: Any, **options: Any) -> Any:
    """(output, logsumexp) of one part."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, **options)


def _gradients(*args: Any, **options: Any) -> Any:
    """Of one part's queries, keys and values."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*args, **options)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


class _Part(NamedTuple):
    """Queries that attend to themselves, behind the end of a prompt or of none."""

    prompt: slice
    own: slice

    def seen(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(1, heads, keys, size): keys or values, as far as the part sees them."""
        behind = _length(self.prompt)
        if not behind:
            return x[:, :, self.own].to(dtype)
        _, heads, _, size = x.shape
        joined = x.new_empty(1, behind + _length(self.own), heads, size, dtype=dtype).transpose(1, 2)
        joined[:, :, :behind], joined[:, :, behind:] = x[:, :, self.prompt], x[:, :, self.own]
        return joined

    def calls(self, window: int | None) -> Iterator[tuple[slice, Call]]:
        """The kernel's calls, and where their queries lie among the batch's tokens; their keys: see `seen`."""
        first, own, behind = self.own.start, _length(self.own), _length(self.prompt)
        for call in attention_calls(own, behind + own, window, _at_most(own, behind)):
            yield slice(first + call.queries.start, first + call.queries.stop), call


def _at_most(own: int, behind: int) -> int | None:
    """Queries of a call, by where cutting was measured to pay (docs/log.md).

    For a block of queries the kernel takes 512 keys at a time, also where the diagonal hides most of them: smaller
    calls have fewer. Its blocks are of 64 queries in calls of 192 to 767; from there on of 256, which is faster.
    """
    cut = own > UNCUT if behind else CUT < own < WHOLE
    return CUT if cut else None


def _parts(row: PrefixRow, window: int | None) -> list[_Part]:
    """A row's causal part, and its rejected one where it has one."""
    start = row.causal.start
    parts = [_Part(slice(start, start), row.causal)]
    if row.rejected.start < row.rejected.stop:
        # no key that no query sees: of a part's keys, its calls together see all
        first = 0 if window is None else max(0, row.prompt - window + 1)
        parts.append(_Part(slice(start + first, start + row.prompt), row.rejected))
    return parts


class _PrefixAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rows: Sequence[PrefixRow],
        mask: Mask,
        scale: float | None,
        window: int | None,
    ) -> Tensor:
        wide = compute_dtype(query.dtype)
        _, heads, tokens, size = query.shape
        result = query.new_empty(1, tokens, heads, size)
        output = result.transpose(1, 2)
        sums_dtype = torch.promote_types(wide, torch.float32)
        sums = query.new_empty(1, tokens, heads, dtype=sums_dtype).transpose(1, 2)
        parts = [_parts(row, window) for row in rows]
        for part in chain.from_iterable(parts):
            keys, values = part.seen(key, wide), part.seen(value, wide)
            for place, call in part.calls(window):
                output[:, :, place], sums[:, :, place] = _attend(
                    query[:, :, place].to(wide),
                    keys[:, :, call.keys],
                    values[:, :, call.keys],
                    is_causal=call.causal,
                    attn_mask=None if call.causal else mask(*call.rule),
                    scale=scale,
                )
        ctx.save_for_backward(query, key, value, result, sums)
        ctx.parts, ctx.mask, ctx.scale, ctx.window, ctx.wide = parts, mask, scale, window, wide
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the gradients of prefix_attention have no derivative")
        query, key, value, result, sums = ctx.saved_tensors
        output, upstream = result.transpose(1, 2), upstream.transpose(1, 2)
        d_query, d_key, d_value = (torch.empty_like(x) for x in (query, key, value))

        def gradients(part: _Part) -> list[Tensor]:
            """Of all the keys and values that the part sees; those of its queries go where they belong."""
            inputs = [part.seen(x, ctx.wide) for x in (key, value)]
            calls = list(part.calls(ctx.window))
            totals = [torch.zeros_like(x) for x in inputs] if len(calls) > 1 else []
            for place, call in calls:
                found: list[Tensor]
                d_query[:, :, place], *found = _gradients(
                    upstream[:, :, place].to(ctx.wide),
                    query[:, :, place].to(ctx.wide),
                    *(x[:, :, call.keys] for x in inputs),
                    output[:, :, place].to(ctx.wide),
                    sums[:, :, place],
                    0.0,
                    call.causal,
                    attn_mask=None if call.causal else ctx.mask(*call.rule),
                    scale=ctx.scale,
                )
                if not totals:
                    return found
                for total, more in zip(totals, found, strict=True):
                    total[:, :, call.keys] += more
            return totals

        for causal, *rejected in ctx.parts:
            of_causal = gradients(causal)
            for part in rejected:
                prompt, own = part.prompt, part.own
                behind = _length(prompt)
                place = slice(prompt.start - causal.own.start, prompt.stop - causal.own.start)
                for d_x, total, found in zip((d_key, d_value), of_causal, gradients(part), strict=True):
                    total[:, :, place] += found[:, :, :behind]
                    d_x[:, :, own] = found[:, :, behind:]
            d_key[:, :, causal.own], d_value[:, :, causal.own] = of_causal
        return d_query, d_key, d_value, *[None] * 4
