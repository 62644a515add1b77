"""A batch of rows -> the log-prob of every scored token, through the model's own `forward`.

`install_logprob_forward` gives a causal LM a second mode of `forward`: called with `score_index` and
`target_ids` it returns (tokens,) log-probs and never builds logits for other positions; called as usual it
does what it always did. It has to be a mode of `forward`, because DDP and FSDP act in hooks around that call:
calling the backbone and the head from outside would train without synchronised or gathered parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from holdfast.data.collate import Batch, PairCollator
from holdfast.data.packing import shared_prefix_mask
from holdfast.errors import ModelError
from holdfast.models.flat_attention import (
    ROWS,
    flat_inputs,
    flat_refusal,
    install_flat_attention,
    is_flash,
    layer_windows,
    own_rule,
)
from holdfast.models.last_layer import install_last_layer
from holdfast.models.lean_layers import install_lean_layers
from holdfast.models.widened import HALF, in_float32
from holdfast.ops.linear_logprob import WHOLE_LOGITS, implementation_for, linear_logprob
from holdfast.ops.linear_objective import linear_objective
from holdfast.ops.product_cache import bound_product_cache

R = TypeVar("R")

MODEL_KEYS = (
    "input_ids",
    "position_ids",
    "segment_ids",
    "row_lengths",
    "read_index",
    "score_index",
    "target_ids",
)
# How log-probs come from hidden states, in words, by `linear_logprob`'s name for it.
HEAD_WORDS = {
    "triton": "Triton kernel",
    "chunked": "torch, a block of the vocabulary at a time",
    "reference": "torch, whole logits",
}


def token_logprobs(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probs of the batch's scored tokens, in nats: (tokens,), float32 (float64 for a float64 model).

    `model` may be wrapped (PEFT, DDP, FSDP) around a model that `install_logprob_forward` has prepared.
    """
    result: Tensor = model(**{key: batch[key] for key in MODEL_KEYS if key in batch})
    return result


def token_losses(model: nn.Module, batch: Batch, losses: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The sum of `losses` of each scored token's log-prob, (), and the log-probs: (tokens,).

    As `losses(token_logprobs(model, batch)).sum()`; where the LM head is trained, for less (see `linear_objective`).
    """
    result: tuple[Tensor, Tensor] = model(
        **{key: batch[key] for key in MODEL_KEYS if key in batch}, losses=losses
    )
    return result


def install_logprob_forward(model: nn.Module, implementation: str | None = None) -> None:
    """Teach the causal LM inside `model` to return token log-probs (see the module's text). Idempotent.

    Args:
        implementation: `linear_logprob`'s, for every token of this model; None: as before, and "auto" at first.

    Raises:
        ModelError: if the LM head carries an adapter: its delta would be trained but not be seen here, and on
            a tied head it merges into wrong logits.
    """
    causal_lm = causal_lm_of(model)
    head = causal_lm.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{type(causal_lm).__name__} has no LM head; load the model with AutoModelForCausalLM"
        )
    if isinstance(head, BaseTunerLayer) or isinstance(getattr(head, "original_module", None), BaseTunerLayer):
        raise ModelError(
            "the LM head is a LoRA target: on a tied head the merged model has wrong logits. Take it out of "
            "`target_modules` and train the whole head instead (`modules_to_save=['lm_head']`, `train_head: true`)"
        )
    causal_lm._holdfast_head = implementation or causal_lm.__dict__.get("_holdfast_head", "auto")
    if "_holdfast_forward" in causal_lm.__dict__:
        return

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("score_index") is None:
            return self._holdfast_forward(*args, **kwargs)
        # PEFT passes along whatever a plain forward could take (labels, inputs_embeds, ...), all of it None.
        return _logprob_forward(self, **{k: v for k, v in kwargs.items() if v is not None})

    # `generate` reads the signature. `functools.wraps` would also set `__wrapped__`, which Accelerate follows
    # to undo mixed precision, and would undo this with it.
    forward.__signature__ = inspect.signature(causal_lm.forward)  # type: ignore[attr-defined]
    bound_product_cache()
    causal_lm._holdfast_forward = causal_lm.forward
    causal_lm._holdfast_reads_less = True  # of the last layer; `check_logprob_forward` sees whether it may
    causal_lm.forward = MethodType(forward, causal_lm)
    install_flat_attention(causal_lm.get_decoder())
    install_lean_layers(causal_lm.get_decoder())
    install_last_layer(causal_lm.get_decoder())


def causal_lm_of(model: nn.Module) -> PreTrainedModel:
    """The transformers causal LM inside a PEFT or otherwise wrapped model."""
    if isinstance(model, PeftModel):
        return model.get_base_model()
    return model


def _logprob_forward(
    causal_lm: Any,
    *,
    input_ids: Tensor,
    score_index: Tensor,
    target_ids: Tensor,
    position_ids: Tensor | None = None,
    segment_ids: Tensor | None = None,
    row_lengths: Sequence[Sequence[int]] | None = None,
    read_index: Tensor | None = None,
    losses: Callable[[Tensor], Tensor] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """(rows, time) or flattened (1, tokens) -> (scored,) log-probs; see `holdfast.data.collate` for the shapes.

    With `losses`: their sum, and the log-probs.
    """
    decoder = causal_lm.get_decoder()
    inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
    if row_lengths is not None:
        assert position_ids is not None
        read = read_index if causal_lm._holdfast_reads_less else None
        inputs |= flat_inputs(decoder.config, row_lengths, position_ids, read)
    elif segment_ids is not None:
        assert position_ids is not None
        inputs["position_ids"] = position_ids
        inputs["attention_mask"] = _attention_mask(decoder, segment_ids, position_ids)
    hidden = getattr(decoder(**inputs), "last_hidden_state", None)
    if ROWS in inputs and not inputs[ROWS].calls:
        raise ModelError(
            f"{type(decoder).__name__} has no attention that takes flattened rows: set `padding_free: false`"
        )
    if hidden is None:
        raise ModelError(
            f"{type(causal_lm).__name__} gives no hidden states to score; it cannot be trained here"
        )
    head = causal_lm.get_output_embeddings()
    config = causal_lm.config.get_text_config()
    scored = hidden.flatten(0, 1)[score_index]
    softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    logit_scale, implementation = _logit_scale(config), causal_lm._holdfast_head

    def score(scored: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        weight = head.weight
        options: dict[str, Any] = {"bias": getattr(head, "bias", None)}
        options |= {"softcap": softcap, "logit_scale": logit_scale}
        fused = implementation == "auto" and weight.requires_grad and torch.is_grad_enabled()
        if fused and losses is not None:
            return linear_objective(scored, weight, target_ids, losses, **options)
        logps = linear_logprob(scored, weight, target_ids, implementation=implementation, **options)
        logps = logps.clone()  # it may be a view, which FSDP warns of
        return logps if losses is None else (losses(logps).sum(), logps)

    return _within(head, score, scored)


def _within(module: nn.Module, compute: Callable[[Tensor], R], value: Tensor) -> R:
    """`compute(value)` as if it were the module's forward: what gathers its weights acts in hooks around that call."""
    own = module.__dict__.get("forward")
    module.forward = compute
    try:
        result: R = module(value)
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
    return result


def head_form(model: nn.Module, device: torch.device, dtype: torch.dtype | None, *, sums_losses: bool) -> str:
    """How log-probs come from hidden states, in words: as chosen, or what "auto" picks for a micro-batch of some size.

    Args:
        dtype: of matrix products under autocast; None: the weight's own.
        sums_losses: whether `token_losses` is called, and not `token_logprobs`.
    """
    causal_lm = causal_lm_of(model)
    weight, name = causal_lm.get_output_embeddings().weight, getattr(causal_lm, "_holdfast_head", "auto")
    if name == "auto" and sums_losses and weight.requires_grad:
        return "torch, a chunk of tokens at a time, its gradient in the forward"
    if name == "auto":
        name = implementation_for(device, dtype or weight.dtype, WHOLE_LOGITS + 1)
    return HEAD_WORDS[name]


def _logit_scale(config: Any) -> float:
    """What the model multiplies its logits with: Cohere's `logit_scale`, Granite's `1 / logits_scaling`, ..."""
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    return float(scale) / float(getattr(config, "logits_scaling", None) or 1.0)


def _attention_mask(decoder: Any, segment_ids: Tensor, position_ids: Tensor) -> Tensor | dict[str, Tensor]:
    """The shared-prefix mask in the form the decoder's layers and attention backend expect."""

    def mask_for(window: int | None) -> Tensor:
        mask = shared_prefix_mask(segment_ids, position_ids, window)
        if decoder.config._attn_implementation == "eager":  # adds the mask to the scores
            dtype = next(decoder.parameters()).dtype
            return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
        return mask

    masks = {kind: mask_for(window) for kind, window in layer_windows(decoder.config).items()}
    return masks if len(masks) > 1 else masks.popitem()[1]


@dataclass(frozen=True)
class ForwardCheck:
    """The forms of rows a model takes, as `check_logprob_forward` found; plain padded rows every model takes.

    Attributes:
        padding_free_refusal: why flattened rows are not used; empty: they can be.
        shared_prefix_refusal: why padded shared-prefix rows with a mask are not used; empty: they can be.
    """

    padding_free_refusal: str
    shared_prefix_refusal: str

    @property
    def padding_free(self) -> bool:
        """Whether flattened rows can be used, with shared prefixes and without."""
        return not self.padding_free_refusal

    @property
    def shared_prefix(self) -> bool:
        """Whether padded shared-prefix rows can be used."""
        return not self.shared_prefix_refusal


MASK_BACKENDS = ("sdpa", "eager")
# What an architecture that does not take a form may raise.
REFUSALS = (ModelError, TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError)


@torch.no_grad()
def check_logprob_forward(model: nn.Module, pad_token_id: int = 0) -> ForwardCheck:
    """Compare the log-prob forward with the model's own logits, and the lean forms of rows with plain ones.

    Runs a handful of random tokens through the model, without dropout, and in float32 (half-precision weights are
    widened a layer at a time, which loses nothing): in half precision a wrong mask could hide in rounding. Costs four
    tiny forwards, and settles by measurement what no list of architectures can. FlashAttention knows half precision
    alone: there sdpa stands in for it, and then the kernel has to come as close with flattened rows as with plain ones.

    Raises:
        ModelError: if the plain form does not reproduce the model's own logits: training would be wrong.
    """
    causal_lm = causal_lm_of(model)
    config = causal_lm.get_decoder().config
    device = causal_lm.get_input_embeddings().weight.device
    examples = _probe_pairs(causal_lm.get_output_embeddings().weight.shape[0])
    plain, shared, flat = (
        {
            key: value.to(device) if isinstance(value, Tensor) else value
            for key, value in PairCollator(pad_token_id, *form)(examples).items()
        }
        for form in ((False, False), (True, False), (True, True))
    )
    flat_reason, shared_reason = flat_refusal(config), _mask_refusal(config)
    flash = is_flash(config._attn_implementation)
    was_training = model.training
    model.eval()
    try:
        with in_float32(model, causal_lm.get_decoder()), _exact_attention(causal_lm):
            ours = token_logprobs(model, plain)
            logits = model(input_ids=plain["input_ids"], use_cache=False).logits
            theirs = logits.flatten(0, 1)[plain["score_index"]].double().log_softmax(-1)
            theirs = theirs.gather(-1, plain["target_ids"][:, None])[:, 0]
            if not torch.allclose(ours.double(), theirs, atol=1e-3, rtol=1e-3):
                raise ModelError(
                    f"{type(causal_lm).__name__} computes its logits in a way holdfast does not reproduce "
                    f"(largest difference {(ours - theirs).abs().max().item():.3g} nats); it cannot be trained here"
                )
            exact = _by_pair(ours, plain)
            if not flat_reason and (flat_reason := _refusal(model, flat, exact, "flattened rows")):
                # the rows may be taken by a model that reads more of its last layer than is known here
                causal_lm._holdfast_reads_less = False
                flat_reason = _refusal(model, flat, exact, "flattened rows")
            shared_reason = shared_reason or _refusal(model, shared, exact, "a shared-prefix mask")
        # A launcher that shards the model moves it later: the kernel cannot run yet, but the rule has been measured.
        if flash and not flat_reason and device.type != "cpu":
            flat_reason = _kernel_refusal(model, plain, flat, exact)
    finally:
        model.train(was_training)
    return ForwardCheck(flat_reason, shared_reason)


def _refusal(model: nn.Module, batch: Batch, exact: Tensor, form: str) -> str:
    """Why the model cannot be given `batch`: it fails, or its log-probs are not the `exact` ones; else empty."""
    try:
        found = _by_pair(token_logprobs(model, batch), batch)
    except REFUSALS as error:
        return f"the architecture takes no {form.removeprefix('a ')}: {error}"
    if torch.allclose(found, exact, atol=1e-4, rtol=1e-4):
        return ""
    return f"the architecture does not honour {form}"


def _kernel_refusal(model: nn.Module, plain: Batch, flat: Batch, exact: Tensor) -> str:
    """Why a half-precision kernel is not trusted with flattened rows; else empty."""
    device = exact.device.type
    dtype = next((p.dtype for p in model.parameters() if p.dtype in HALF), torch.bfloat16)
    with torch.autocast(device, dtype=dtype):
        rounding = (_by_pair(token_logprobs(model, plain), plain) - exact).abs().mean()
        try:
            error = (_by_pair(token_logprobs(model, flat), flat) - exact).abs().mean()
        except REFUSALS as refusal:
            return f"the attention kernel takes no flattened rows: {refusal}"
    if error <= 2 * rounding + 0.01:
        return ""
    return f"the attention kernel is {error.item():.3g} nats off with flattened rows"


def _by_pair(logps: Tensor, batch: Batch) -> Tensor:
    """(scored,) log-probs of a batch of pairs in one order, whatever the form of its rows."""
    slots = torch.cat([batch["chosen_slots"].flatten(), batch["rejected_slots"].flatten()])
    return logps[slots[slots >= 0]]


def _probe_pairs(vocabulary: int) -> list[dict[str, Any]]:
    """Two pairs of random tokens, of lengths that differ on every side."""
    generator = torch.Generator().manual_seed(0)
    keys, lengths = ("prompt_ids", "chosen_ids", "rejected_ids"), ((7, 5, 6), (3, 1, 9))
    return [
        {
            "row_index": number,
            **{
                key: torch.randint(0, vocabulary, (length,), generator=generator).tolist()
                for key, length in zip(keys, triple, strict=True)
            },
        }
        for number, triple in enumerate(lengths)
    ]


@contextmanager
def _exact_attention(causal_lm: PreTrainedModel) -> Iterator[None]:
    """Attention that can compute in float32: another one in FlashAttention's place, for the moment."""
    config = causal_lm.get_decoder().config
    former = config._attn_implementation
    try:
        if is_flash(former):
            config._attn_implementation = "sdpa" if causal_lm._supports_sdpa else "eager"
        yield
    finally:
        config._attn_implementation = former


def _mask_refusal(config: Any) -> str:
    """Why a decoder of this configuration cannot be given a mask of ours; else empty."""
    if rule := own_rule(config):
        return rule
    if config._attn_implementation not in MASK_BACKENDS:
        return f"attention backend '{config._attn_implementation}' takes no mask of ours (use sdpa)"
    return ""
