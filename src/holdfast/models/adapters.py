"""LoRA as the SLIME paper trains it: low-rank adapters on every projection, and the LM head itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from holdfast.errors import ModelError
from holdfast.models.token_logprobs import causal_lm_of
from holdfast.models.widened import HALF

# Attention and MLP projections, as separate matrices and as the fused ones of some families.
PROJECTIONS = frozenset(
    "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj qkv_proj gate_up_proj c_attn c_proj c_fc "
    "query_key_value dense dense_h_to_4h dense_4h_to_h".split()
)


def lora_config(
    model: PreTrainedModel, *, rank: int = 64, alpha: int = 128, dropout: float = 0.0, train_head: bool = True
) -> LoraConfig:
    """LoRA on attention and MLP projections and, by default, a fully trained LM head (SLIME, Table of settings).

    A head tied to the input embeddings stays tied: both are trained as one matrix.

    Raises:
        ModelError: if the text decoder has none of the projections LoRA is put on.
    """
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    inside = [
        name
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.rpartition(".")[2] in PROJECTIONS
    ]
    if not inside:
        raise ModelError(
            f"{type(model).__name__} has none of the projections LoRA is put on: pass your own LoraConfig"
        )
    if _has_other_towers(model, decoder):  # a vision tower has projections of the same names
        targets = [f"{prefix}.{name}" for name in inside]
    else:
        targets = sorted({name.rpartition(".")[2] for name in inside})
    head = head_name(model)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=[head] if train_head else None,
        ensure_weight_tying=train_head and is_tied(model),
    )


def attach_adapter(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Wrap `model` with the adapter; trained parameters are float32 whatever the base's dtype.

    Raises:
        ModelError: if the adapter sits on the LM head.
    """
    config = copy.deepcopy(config)
    head = head_name(model)
    targets = config.target_modules or ()
    if not isinstance(targets, str) and any(t == head or head.endswith("." + t) for t in targets):
        raise ModelError(
            f"'{head}' is a LoRA target: on a tied head the merged model has wrong logits. Train the whole head "
            "instead (`modules_to_save=['lm_head']`, `train_head: true`)"
        )
    if head in (config.modules_to_save or ()) and is_tied(model):
        config.ensure_weight_tying = True
    was_tied = is_tied(model)
    peft_model = get_peft_model(model, config)
    require_mergeable(peft_model, was_tied)
    train_in_float32(peft_model)
    if was_tied and not is_tied(causal_lm_of(peft_model)):
        raise ModelError(
            "the adapter unties the LM head from the embeddings, and the saved model would be another: train the "
            "whole head (`modules_to_save=['lm_head']`), or leave both frozen"
        )
    return peft_model


def require_mergeable(model: PeftModel, was_tied: bool) -> None:
    """See that no adapter lies on a matrix that is used twice: merged, it would change the other use as well.

    Args:
        was_tied: whether LM head and embeddings were one matrix before the adapter was put on.

    Raises:
        ModelError: one does.
    """
    causal_lm = causal_lm_of(model)
    for what, module in (
        ("input embeddings are", causal_lm.get_input_embeddings()),
        ("LM head is", causal_lm.get_output_embeddings()),
    ):
        if was_tied and isinstance(module, BaseTunerLayer):
            raise ModelError(
                f"the {what} a LoRA target, and embeddings and LM head are tied: the merged model would be another. "
                "Train the whole matrix instead (`modules_to_save=['lm_head']`, `train_head: true`)"
            )


def train_in_float32(model: nn.Module) -> int:
    """Keep every trained parameter in float32, in place; how many were half precision.

    A bfloat16 weight of 0.02 moves in steps of 1e-4: at the learning rates of preference training its updates
    would round to nothing.
    """
    half = [p for p in model.parameters() if p.requires_grad and p.dtype in HALF]
    for parameter in half:
        parameter.data = parameter.data.float()
    return len(half)


def is_tied(model: PreTrainedModel) -> bool:
    """True when the LM head and the input embeddings are one matrix, adapters included."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is embeddings.weight


def head_name(model: PreTrainedModel) -> str:
    """The module name of the LM head, `lm_head` nearly everywhere."""
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head)


@torch.no_grad()
def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Fold the adapter into the base model, in place, and make sure the result computes the same.

    Raises:
        ModelError: if merging changed the model's output by more than rounding.
    """
    before = probe_logprobs(model)
    tied = is_tied(causal_lm_of(model))
    # Rounding is decided by the coarsest weights that take part, not by the trained ones, which are float32.
    rounded = any(parameter.dtype in HALF for parameter in model.parameters())
    try:
        merged: Any = model.merge_and_unload(safe_merge=True)
    except (
        ValueError,
        RuntimeError,
        NotImplementedError,
    ) as error:  # numbers beyond the dtype; kinds without a merge
        raise ModelError(f"the adapter cannot be merged: {error}") from error
    if tied and not is_tied(merged):
        raise ModelError("merging untied the LM head from the embeddings")
    drift = divergence(before, probe_logprobs(merged))
    if not drift <= (0.05 if rounded else 1e-4):
        raise ModelError(f"the merged model diverges from the trained one by {drift:.3g} nats a token")
    return merged


def divergence(before: Tensor, after: Tensor) -> float:
    """Mean KL(before || after) over the tokens of two (tokens, vocab) log-prob tables, in nats a token."""
    return (before.double().exp() * (before.double() - after.double())).sum(-1).mean().item()


@torch.no_grad()
def probe_logprobs(model: nn.Module, tokens: int = 16) -> Tensor:
    """Log-probs over the whole vocabulary after fixed random tokens: (tokens, vocab), nats, float32.

    A fingerprint of what a model computes, to tell whether merging, saving or loading changed it.
    """
    causal_lm = causal_lm_of(model)
    embeddings = causal_lm.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, embeddings.shape[0], (1, tokens), generator=generator).to(embeddings.device)
    was_training = model.training
    model.eval()
    # trained parts may be float32 inside a half-precision model
    mixed = len({p.dtype for p in model.parameters() if p.is_floating_point()}) > 1
    with torch.autocast(embeddings.device.type, torch.bfloat16, enabled=mixed):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    model.train(was_training)
    return logits[0].float().log_softmax(-1)


def _has_other_towers(model: PreTrainedModel, decoder: nn.Module) -> bool:
    inside = {id(m) for m in decoder.modules()}
    head = model.get_output_embeddings()
    return any(isinstance(m, nn.Linear) and id(m) not in inside and m is not head for m in model.modules())
