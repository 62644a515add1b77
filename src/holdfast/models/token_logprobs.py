"""A batch of rows -> the log-prob of every scored token, through the model's own `forward`.

`install_logprob_forward` gives a causal LM a second mode of `forward`: called with `score_index` and
`target_ids` it returns (tokens,) log-probs and never builds logits for other positions; called as usual it
does what it always did. It has to be a mode of `forward`, because DDP and FSDP act in hooks around that call:
calling the backbone and the head from outside would train without synchronised or gathered parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from holdfast.data.collate import Batch, PairCollator
from holdfast.data.packing import shared_prefix_mask
from holdfast.errors import ModelError
from holdfast.ops.linear_logprob import linear_logprob

HALF = (torch.float16, torch.bfloat16)
MODEL_KEYS = ("input_ids", "position_ids", "segment_ids", "score_index", "target_ids")


def token_logprobs(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probs of the batch's scored tokens, in nats: (tokens,), float32 (float64 for a float64 model).

    `model` may be wrapped (PEFT, DDP, FSDP) around a model that `install_logprob_forward` has prepared.
    """
    result: Tensor = model(**{key: batch[key] for key in MODEL_KEYS if key in batch})
    return result


def install_logprob_forward(model: nn.Module) -> None:
    """Teach the causal LM inside `model` to return token log-probs (see the module's text). Idempotent.

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
    causal_lm._holdfast_forward = causal_lm.forward
    causal_lm.forward = MethodType(forward, causal_lm)


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
) -> Tensor:
    """(rows, time) of tokens -> (tokens,) log-probs; see `holdfast.data.collate` for the shapes."""
    decoder = causal_lm.get_decoder()
    inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
    if segment_ids is not None:
        assert position_ids is not None
        inputs["position_ids"] = position_ids
        inputs["attention_mask"] = _attention_mask(decoder, segment_ids, position_ids)
    hidden = getattr(decoder(**inputs), "last_hidden_state", None)
    if hidden is None:
        raise ModelError(
            f"{type(causal_lm).__name__} gives no hidden states to score; it cannot be trained here"
        )
    head = causal_lm.get_output_embeddings()
    config = causal_lm.config.get_text_config()
    return linear_logprob(
        hidden.flatten(0, 1)[score_index],
        head.weight,
        target_ids,
        bias=getattr(head, "bias", None),
        softcap=getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None),
        logit_scale=_logit_scale(config),
    )


def _logit_scale(config: Any) -> float:
    """What the model multiplies its logits with: Cohere's `logit_scale`, Granite's `1 / logits_scaling`, ..."""
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    return float(scale) / float(getattr(config, "logits_scaling", None) or 1.0)


def _attention_mask(decoder: Any, segment_ids: Tensor, position_ids: Tensor) -> Tensor | dict[str, Tensor]:
    """The shared-prefix mask in the form the decoder's layers and attention backend expect."""
    config = decoder.config
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    unknown = kinds - {"full_attention", "sliding_attention"}
    if unknown:
        raise ModelError(f"shared-prefix rows know full and sliding attention, not {sorted(unknown)}")

    def mask_for(kind: str) -> Tensor:
        mask = shared_prefix_mask(segment_ids, position_ids, window if kind == "sliding_attention" else None)
        if config._attn_implementation == "eager":  # adds the mask to the scores
            dtype = next(decoder.parameters()).dtype
            return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
        return mask

    masks = {kind: mask_for(kind) for kind in kinds}
    return masks if len(masks) > 1 else masks.popitem()[1]


@dataclass(frozen=True)
class ForwardCheck:
    """What `check_logprob_forward` found for one model."""

    shared_prefix: bool
    reason: str  # why shared-prefix rows are not used; empty when they are


MASK_BACKENDS = ("sdpa", "eager")
# Attention rules of their own, by row index: a mask of ours does not reach them, and a short probe cannot tell.
OWN_RULES = (
    "alibi",
    "attention_chunk_size",
    "attention_types",
    "attn_config",
    "local_attention",
    "window_size",
)


@torch.no_grad()
def check_logprob_forward(model: nn.Module, pad_token_id: int = 0) -> ForwardCheck:
    """Compare the log-prob forward with the model's own logits, and shared-prefix with plain rows.

    Runs a handful of random tokens through the model, without dropout, and in float32 (half-precision weights are
    widened for the moment, which loses nothing): in half precision a wrong mask could hide in rounding. Costs three
    tiny forwards, and settles by measurement what no list of architectures can.

    Raises:
        ModelError: if the plain form does not reproduce the model's own logits: training would be wrong.
    """
    causal_lm = causal_lm_of(model)
    device = causal_lm.get_input_embeddings().weight.device
    examples = _probe_pairs(causal_lm.get_output_embeddings().weight.shape[0])
    plain, shared = (
        {
            key: value.to(device)
            for key, value in PairCollator(pad_token_id, shared_prefix=form)(examples).items()
        }
        for form in (False, True)
    )
    was_training = model.training
    model.eval()
    try:
        with _in_float32(model):
            ours = token_logprobs(model, plain)
            logits = model(input_ids=plain["input_ids"], use_cache=False).logits
            theirs = logits.flatten(0, 1)[plain["score_index"]].double().log_softmax(-1)
            theirs = theirs.gather(-1, plain["target_ids"][:, None])[:, 0]
            if not torch.allclose(ours.double(), theirs, atol=1e-3, rtol=1e-3):
                raise ModelError(
                    f"{type(causal_lm).__name__} computes its logits in a way holdfast does not reproduce "
                    f"(largest difference {(ours - theirs).abs().max().item():.3g} nats); it cannot be trained here"
                )
            if refusal := _mask_refusal(causal_lm):
                return ForwardCheck(False, refusal)
            try:
                packed = token_logprobs(model, shared)
            except (ModelError, TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
                return ForwardCheck(False, f"the architecture takes no shared-prefix mask: {error}")
        matches = all(
            torch.allclose(
                packed[shared[side][shared[side] >= 0]],
                ours[plain[side][plain[side] >= 0]],
                atol=1e-4,
                rtol=1e-4,
            )
            for side in ("chosen_slots", "rejected_slots")
        )
        return ForwardCheck(
            matches, "" if matches else "the architecture does not honour a shared-prefix mask"
        )
    finally:
        model.train(was_training)


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
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Half-precision weights as float32, and no autocast; both as they were afterwards."""
    half = [
        t for t in chain(model.parameters(), model.buffers()) if t.dtype in (torch.float16, torch.bfloat16)
    ]
    narrow = [(tensor, tensor.dtype) for tensor in half]
    device = next(model.parameters()).device.type
    try:
        for tensor in half:
            tensor.data = tensor.data.float()
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for tensor, dtype in narrow:
            tensor.data = tensor.data.to(dtype)


def _mask_refusal(causal_lm: PreTrainedModel) -> str:
    """Why the model cannot be given a mask of ours, or an empty string."""
    config = causal_lm.config.get_text_config()
    own = [name for name in OWN_RULES if getattr(config, name, None)]
    if own:
        return f"the architecture has an attention rule of its own ({', '.join(own)})"
    if config._attn_implementation not in MASK_BACKENDS:
        return f"attention backend '{config._attn_implementation}' takes no mask of ours (use sdpa)"
    return ""
