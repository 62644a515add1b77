"""Attention over flattened rows: an attention function of our own, registered with transformers.

A flattened micro-batch is one row of tokens without padding (see `flat_rows`). Its layers must not attend across it
as if it were one text, and a dense mask that says so costs tokens x tokens and hides the causal structure from the
kernels. So the decoder is given the rows' lengths as a keyword, which transformers hands down to every attention
layer, and while it runs with that keyword its attention is ours:

- `sdpa`: one causal call for each `[prompt | chosen]`, one for each rejected part against `[prompt | rejected]` (more
  where one is long or under a window), all of whose masks are views of one; on a CPU by `ops.prefix_attention`;
- FlashAttention: one variable-length call for all of them;
- `flex_attention`: transformers' own function, given a block mask.

Calls without the keyword (`generate`, a plain forward) are not touched. The switch is made by hooks on every module
that could look the function up, and not once around the decoder: activation checkpointing runs layers again during
the backward, long after the decoder's forward has returned, and with nothing but the keyword to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface
from transformers.integrations.flash_attention import get_target_dtype
from transformers.modeling_flash_attention_utils import (
    _flash_attention_forward,
    flash_attn_supports_top_left_mask,
)

from holdfast.errors import ModelError
from holdfast.models.flat_rows import FlatRows
from holdfast.ops.attention_calls import STRIPE, Call, attention_calls
from holdfast.ops.prefix_attention import compute_dtype, prefix_attention, takes_prefix_attention

NAME = "holdfast"  # of the attention function
ROWS = "flat_rows"  # the keyword under which the rows travel to it

# Attention rules of their own, by row index: nothing of ours reaches them, and a short probe cannot tell.
OWN_RULES = (
    "alibi",
    "attention_chunk_size",
    "attention_types",
    "attn_config",
    "local_attention",
    "window_size",
)
DROPOUTS = ("attention_dropout", "attn_dropout", "attn_pdrop", "attention_probs_dropout_prob")
# Keywords that layers hand to attention and that change nothing in it.
IDLE = frozenset({"position_ids", "cache_position", "return_dict"})


def is_flash(backend: str | None) -> bool:
    """Whether `backend` is a FlashAttention, of the package or of the kernel hub."""
    return "flash" in (backend or "")


def flat_refusal(config: Any) -> str:
    """Why a model of this configuration takes no flattened rows, as far as the configuration tells; else empty."""
    backend = config._attn_implementation
    if rule := own_rule(config):
        return rule
    if dropout := [name for name in DROPOUTS if getattr(config, name, None)]:
        return f"attention dropout is on ({dropout[0]}: {getattr(config, dropout[0])})"
    if backend not in ("sdpa", "flex_attention") and not is_flash(backend):
        return f"attention is '{backend}'; flattened rows go with sdpa, flex_attention and FlashAttention"
    if is_flash(backend) and flash_attn_supports_top_left_mask():
        return f"attention backend '{backend}' aligns causality at the first key on this device"
    return ""


def own_rule(config: Any) -> str:
    """The attention rule that only the architecture itself can apply, in words; else empty."""
    own = [name for name in OWN_RULES if getattr(config, name, None)]
    return f"the architecture has an attention rule of its own ({', '.join(own)})" if own else ""


def layer_windows(config: Any) -> dict[str, int | None]:
    """The kinds of attention layer the model has, and how many positions each sees back; None: all.

    Raises:
        ModelError: if there are layers that are neither full nor sliding attention.
    """
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise ModelError(f"rows that share a prompt know full and sliding attention, not {sorted(unknown)}")
    return {kind: window if kind == "sliding_attention" else None for kind in kinds}


def install_flat_attention(decoder: nn.Module) -> None:
    """Let `decoder` take flattened rows; without the keyword it does what it always did. Call once."""
    AttentionInterface.register(NAME, flat_attention)
    for module in decoder.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            _switch(module)


def _switch(module: nn.Module) -> None:
    """While `module` runs with the rows' keyword, its configuration names our function."""
    former: list[str | None] = []

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        former.append(module.config._attn_implementation if kwargs.get(ROWS) is not None else None)
        if former[-1] is not None:
            module.config._attn_implementation = NAME

    def after(module: Any, args: Any, output: Any) -> None:
        if (name := former.pop()) is not None:
            module.config._attn_implementation = name

    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(after, always_call=True)


def flat_inputs(
    config: Any, row_lengths: Sequence[Sequence[int]], position_ids: Tensor, read: Tensor | None = None
) -> dict[str, Any]:
    """What a decoder with `config` needs besides the tokens, to keep the rows of a flattened batch apart.

    Args:
        read: the tokens whose last hidden state is read, see `FlatRows`.

    Raises:
        ModelError: if the configuration rules flattened rows out.
    """
    if refusal := flat_refusal(config):
        raise ModelError(f"flattened rows cannot be used, set `padding_free: false`: {refusal}")
    windows = layer_windows(config)
    rows = FlatRows(row_lengths, config._attn_implementation, read)
    if rows.backend == "flex_attention":
        masks = {kind: rows.block_mask(position_ids, window) for kind, window in windows.items()}
        mask = masks if len(masks) > 1 else masks.popitem()[1]
        return {"position_ids": position_ids, "attention_mask": mask}
    return {"position_ids": position_ids, ROWS: rows}


def flat_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    flat_rows: FlatRows | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function: each row of a flattened batch by itself.

    Args:
        module: the attention layer.
        query: (1, heads, tokens, size); key, value: (1, key_value_heads, tokens, size).
        flat_rows: the rows; the other keywords are transformers'.

    Returns:
        (1, tokens, heads, size), and None for the weights.

    Raises:
        ModelError: for anything that would change attention and is not known here: never ignored.
    """
    if flat_rows is None:
        raise ModelError(f"{type(module).__name__} hands no keywords on to attention")
    tokens = sum(flat_rows.sizes)
    if (query.shape[0], query.shape[2], key.shape[2], value.shape[2]) != (1, tokens, tokens, tokens):
        raise ModelError(f"attention got {key.shape[2]} keys for the {tokens} tokens of the batch")
    unknown = [n for n, v in others.items() if n not in IDLE and v is not None and v is not False]
    if attention_mask is not None:
        unknown.append("attention_mask")
    if softcap is not None and not is_flash(flat_rows.backend):
        unknown.append("softcap")
    if unknown:
        raise ModelError(f"attention over flattened rows does not know: {', '.join(unknown)}")
    if dropout > 0:
        raise ModelError("attention dropout does not go with flattened rows: set `padding_free: false`")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise ModelError("attention over flattened rows is causal")
    if sliding_window != (expected := _window(module)):
        raise ModelError(
            f"an attention layer sees {sliding_window} positions back, by its configuration {expected}"
        )
    flat_rows.calls += 1
    if is_flash(flat_rows.backend):
        return _flash(module, flat_rows, query, key, value, scaling, sliding_window, softcap), None
    return _sdpa(flat_rows, query, key, value, scaling, sliding_window), None


def _window(module: Any) -> int | None:
    """The layer's sliding window, by its configuration."""
    windows = layer_windows(module.config)
    if len(windows) == 1:
        return next(iter(windows.values()))
    return windows[module.config.layer_types[module.layer_idx]]


def _sdpa(
    rows: FlatRows, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
) -> Tensor:
    device = query.device.type
    # where autocast would cast each part in each call, the whole is cast once
    if torch.is_autocast_enabled(device) and query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if takes_prefix_attention(query, key, value):
        mask = partial(rows.additive_mask, dtype=compute_dtype(query.dtype))
        return prefix_attention(query, key, value, rows.prefix_rows(), mask, scale, window)
    # `split` and not slices: its backward is one concatenation, that of a slice fills a whole gradient with zeros
    queries, keys, values = (tensor.split(rows.sizes, dim=2) for tensor in (query, key, value))
    parts = list(zip(queries, keys, values, strict=True))
    for branch in rows.branches:
        first = 0 if window is None else max(0, branch.prompt - window + 1)
        own, (_, prompt_keys, prompt_values) = parts[branch.part], parts[branch.row]
        parts[branch.part] = (
            own[0],
            torch.cat([prompt_keys[:, :, first : branch.prompt], own[1]], dim=2),
            torch.cat([prompt_values[:, :, first : branch.prompt], own[2]], dim=2),
        )
    calls = [_calls(query.shape[2], key.shape[2], window, device) for query, key, _ in parts]
    if device == "cpu":
        rows.build_masks(chain.from_iterable(calls), query.dtype)
    outputs = [_attend(rows, own, *part, scale) for own, part in zip(calls, parts, strict=True)]
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1)


def _calls(queries: int, keys: int, window: int | None, device: str) -> list[Call]:
    """Without a mask wherever a kernel can do without: CUDA's need none for causality alone, none does for a square."""
    return attention_calls(queries, keys, window, None if device == "cuda" or queries == keys else STRIPE)


def _attend(
    rows: FlatRows, calls: Sequence[Call], query: Tensor, key: Tensor, value: Tensor, scale: float | None
) -> Tensor:
    """Bottom-right causal attention of one part."""
    outputs = [_call(rows, call, query, key, value, scale) for call in calls]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _call(
    rows: FlatRows, call: Call, query: Tensor, key: Tensor, value: Tensor, scale: float | None
) -> Tensor:
    query, key, value = query[:, :, call.queries], key[:, :, call.keys], value[:, :, call.keys]
    device, banded = query.device, call.window is not None
    mask: Tensor | None = None
    if call.causal:
        pass
    elif device.type == "cpu":
        mask = rows.additive_mask(*call.rule, query.dtype)
    elif banded or device.type != "cuda":
        mask = rows.causal_mask(*call.rule, device)
    else:
        mask = causal_lower_right(query.shape[2], key.shape[2])
    grouped = key.shape[1] != query.shape[1]
    if grouped and device.type != "cpu" and (banded or device.type != "cuda" or query.element_size() > 2):
        # elsewhere, grouped queries would cost the kernel
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
        grouped = False
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=call.causal, scale=scale, enable_gqa=grouped
    )


def _flash(
    module: nn.Module,
    rows: FlatRows,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    if query.shape[-1] != value.shape[-1]:
        raise ModelError("variable-length attention needs keys and values of one size")
    calls = rows.varlen(query.device)
    if calls.key_index is not None:
        key, value = key.index_select(2, calls.key_index), value.index_select(2, calls.key_index)
    return _flash_attention_forward(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        None,
        query_length=query.shape[2],
        is_causal=True,
        softmax_scale=scale,
        sliding_window=window,
        softcap=softcap,
        cu_seq_lens_q=calls.cu_queries,
        cu_seq_lens_k=calls.cu_keys,
        max_length_q=calls.longest_query,
        max_length_k=calls.longest_key,
        target_dtype=get_target_dtype(query, module),
        attn_implementation=rows.backend,
    )
