"""A trained model -> a folder that `AutoModelForCausalLM.from_pretrained` loads, checked before it is published."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import ModelError
from holdfast.files import errno_of
from holdfast.models.adapters import divergence, is_tied, merge_adapter, probe_logprobs
from holdfast.models.quantized import dequantized, is_quantized
from holdfast.models.token_logprobs import causal_lm_of
from holdfast.models.widened import HALF

# What stands beside the folder while it is made: the adapter as trained, and the model so far.
ADAPTER, PARTIAL = ".adapter", ".partial"
# Settings of generation that greedy search, or a search of one beam, does not read: transformers loads a model that has
# them, and refuses to save it.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("early_stopping", "length_penalty")
# Nats a token: products in half precision, or of int8's rounded inputs, against plain ones.
QUANTIZED_DRIFT = 0.05


@dataclass(frozen=True)
class Exported:
    """What was saved, and what saving changed.

    Attributes:
        folder: the finished folder.
        dtype: of the saved weights.
        drift: KL divergence of the saved model's predictions from the trained one's, on fixed random tokens,
            in nats a token: rounding in float32, more when trained float32 weights are saved in half precision, or
            quantized ones as plain ones.
    """

    folder: Path
    dtype: str
    drift: float


def save_final(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    stop_token_ids: Sequence[int] = (),
    keep_adapter: bool = True,
) -> Exported:
    """Merge adapters, save weights (safetensors) and tokenizer, load them again and compare; then publish.

    Quantized weights are saved as the numbers that they stand for, with the adapter added: merged into the weights
    before quantization, it would correct an error that they do not have.

    The folder appears under its name only when all of that has succeeded. An adapter is merged in place: train
    on with the model in `folder`, not with `model`.

    Args:
        dtype: of the saved weights; None keeps what most of the model has.
        stop_token_ids: tokens that end a turn in the training rows; generation from the saved model stops there.
        keep_adapter: an adapter is saved beside `folder` first, and stays there if anything fails; not needed for one
            that has a folder of its own.

    Raises:
        ModelError: if the weights are not finite (in `dtype` neither), or merging, saving or loading changes what the
            model computes.
    """
    folder = Path(folder)
    if folder.exists():
        raise ModelError(f"'{folder}' exists already; move it aside first")
    if broken := _not_finite(model):
        raise ModelError(f"training diverged, the weights are not finite ({broken}): lower the learning rate")
    before = probe_logprobs(model)
    dtype = dtype or main_dtype(model)
    adapter, partial = (folder.with_name(folder.name + suffix) for suffix in (ADAPTER, PARTIAL))
    saved = False
    try:
        if isinstance(model, PeftModel):
            if keep_adapter:
                model.save_pretrained(adapter)  # merging is in place: what was trained must outlive a failure
                saved = True
            if dtype not in HALF and not is_quantized(model):
                model = model.to(dtype)  # before merging, so that the merge is not rounded
        if is_quantized(model):
            model = _dequantized(model, adapter, dtype, before)
        plain: Any = merge_adapter(model) if isinstance(model, PeftModel) else model
        plain = plain.to(dtype)
        if broken := _not_finite(plain):
            raise ModelError(f"numbers of {broken} are beyond the range of {dtype}: save in another dtype")
        after = probe_logprobs(plain)
        if bool(after.isnan().any()):
            raise ModelError(f"computed in {dtype} it predicts NaN: save in another dtype")
        drift = divergence(before, after)
        if not math.isfinite(drift):
            raise ModelError("its predictions are NaN or infinite, so what saving changes cannot be told")
        _set_stop_tokens(plain, tokenizer, stop_token_ids)
        shutil.rmtree(partial, ignore_errors=True)
        plain.save_pretrained(partial, safe_serialization=True)
        tokenizer.save_pretrained(partial)
        _require_same(plain, partial)
        os.replace(partial, folder)
    except Exception as error:
        refused = errno_of(error)
        if refused is None and not isinstance(error, ModelError):
            raise
        what = error if refused is None else f"{os.strerror(refused)}"
        kept = f"; the adapter is kept in '{adapter}'" if saved else ""
        raise ModelError(f"'{folder}' was not saved: {what}{kept}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if saved:
        shutil.rmtree(adapter, ignore_errors=True)
    return Exported(folder, str(plain.dtype).removeprefix("torch."), drift)


def _dequantized(model: nn.Module, adapter: Path, dtype: torch.dtype, before: Tensor) -> PeftModel:
    """The model with plain weights, and its adapter still beside them.

    Raises:
        ModelError: it has no adapter; plain weights do not fit in memory, or predict otherwise.
    """
    if not isinstance(model, PeftModel):
        raise ModelError("its weights are quantized, and without an adapter nothing of it was trained")
    try:
        plain = dequantized(model, adapter, dtype)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            "its weights do not fit in memory as plain ones: merge the adapter where there is more"
        ) from error
    drift = divergence(before, probe_logprobs(plain))
    if not drift <= QUANTIZED_DRIFT:
        raise ModelError(f"with plain weights it predicts otherwise, by {drift:.3g} nats a token")
    return plain


def _not_finite(model: nn.Module) -> str:
    """The first parameter with a NaN or an infinity; empty where there is none."""
    names = (name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all()))
    return next(names, "")


def main_dtype(model: nn.Module) -> torch.dtype:
    """The dtype most of the weights have: a trained float32 head may sit on a half-precision body.

    Of a model with quantized weights, the dtype that it was loaded in besides.
    """
    if is_quantized(model):
        return causal_lm_of(model).config.dtype or torch.float32
    sizes: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        sizes[parameter.dtype] += parameter.numel()
    return sizes.most_common(1)[0][0]


def _set_stop_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]
) -> None:
    """Without this a base model with an instruct template would never stop at the end of its turn."""
    config = model.generation_config
    if config is None:
        return
    known = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    ids = [known] if isinstance(known, int) else list(known or [])
    ids += [stop for stop in stops if stop not in ids]
    config.eos_token_id = ids if len(ids) > 1 else (ids[0] if ids else None)
    config.pad_token_id = tokenizer.pad_token_id
    unread = [] if config.do_sample else [*SAMPLING]
    unread += BEAMS if (config.num_beams or 1) == 1 else ()
    for name in unread:
        if getattr(config, name, None) is not None:
            setattr(config, name, None)


def _require_same(model: PreTrainedModel, folder: Path) -> None:
    """Load `folder` as a user would, and compare every tensor."""
    # a class that is no part of transformers came with the model's own code, which is loaded already
    foreign = not type(model).__module__.startswith("transformers.")
    own = type(model) if foreign else AutoModelForCausalLM
    loaded = own.from_pretrained(folder, dtype=model.dtype, trust_remote_code=False)
    expected, found = model.state_dict(), loaded.state_dict()
    if expected.keys() != found.keys():
        raise ModelError(
            f"the saved model has other weights than the trained one: {expected.keys() ^ found.keys()}"
        )
    different = [
        name for name, tensor in expected.items() if not torch.equal(tensor.cpu(), found[name].cpu())
    ]
    if different:
        raise ModelError(f"the saved model differs from the trained one in {', '.join(different[:5])}")
    if is_tied(model) != is_tied(loaded):
        raise ModelError("the saved model does not keep the LM head tied to the embeddings as it was")
