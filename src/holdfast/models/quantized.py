"""Frozen weights in 4 or 8 bits under an adapter (QLoRA: Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.

The projections of the layers are quantized; embeddings, norms and the LM head stay as they were loaded, so that a head
can be trained whole and the log-prob forward sees the weight it always sees. PEFT's `prepare_model_for_kbit_training`
is not called: it would cast frozen norms, embeddings and head to float32, which nothing here needs (norms and log-probs
are float32 inside), and a head of 262k entries would pay for with gigabytes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from holdfast.errors import ConfigError, ModelError, did_you_mean

# 4-bit NormalFloat, 4-bit float, and LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339).
QUANTIZATIONS = ("nf4", "fp4", "int8")
_PARAMETERS = ("Params4bit", "Int8Params")  # the classes of quantized weights; the package may not be there


def require_bitsandbytes(setting: str) -> None:
    """See that the package is installed.

    Args:
        setting: what asks for it, as the user wrote it: `optim: adamw_bnb_8bit`.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"{setting}: needs the package bitsandbytes, which is not installed: pip install 'holdfast[quantized]'"
        )


def require_quantization(name: str) -> None:
    """See that a quantization is known, and can be had here.

    Raises:
        ConfigError: unknown (names the nearest), or bitsandbytes is not installed.
    """
    if name not in QUANTIZATIONS:
        raise ConfigError(f"quantization '{name}' is unknown{did_you_mean(name, QUANTIZATIONS)}")
    require_bitsandbytes(f"quantization: {name}")


def quantization_options(name: str, compute_dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
    """What `from_pretrained` is to be called with.

    Args:
        name: one of `QUANTIZATIONS`; 4-bit ones quantize their scales too.
        compute_dtype: of matrix products with 4-bit weights.
        device: where the weights go while they are read: they never exist whole.

    Raises:
        ConfigError: as `require_quantization`.
    """
    require_quantization(name)
    if name == "int8":
        # It says at every call that it rounds its input to float16 first.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        how = BitsAndBytesConfig(load_in_8bit=True)
    else:
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=name,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
        )
    return {"quantization_config": how, "device_map": {"": device}}


def is_quantized(model: nn.Module) -> bool:
    """Whether some of the weights are quantized by bitsandbytes."""
    return any(type(parameter).__name__ in _PARAMETERS for parameter in model.parameters())


def keep_trainable(model: nn.Module) -> None:
    """See that 4-bit weights stay in the layout that gradients pass through, in place.

    On CPUs with bfloat16 instructions bitsandbytes 0.50 packs them anew at the first evaluation, to save time; after
    that a forward in training gives no gradients, and says nothing.

    Raises:
        ModelError: it has happened.
    """
    module: Any
    for module in model.modules():
        if type(module._parameters.get("weight")).__name__ != "Params4bit":
            continue
        if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
            raise ModelError(
                "the 4-bit weights were packed for evaluation on this CPU, and no gradient passes through them: load "
                "the model anew"
            )
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def dequantized(model: PeftModel, adapter: Path, dtype: torch.dtype) -> PeftModel:
    """The model with plain weights of the same values under its adapter; `model` is spent.

    Args:
        adapter: the folder that the adapter was saved in.
        dtype: of the weights that were quantized.
    """
    base: Any = model.unload()
    whole: PreTrainedModel = base.dequantize(dtype)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(whole, name):
            delattr(whole, name)
    return PeftModel.from_pretrained(whole, str(adapter), torch_device=str(whole.device))


@contextmanager
def exact_products(model: nn.Module) -> Iterator[None]:
    """Quantized weights multiply as the numbers they stand for, in the input's dtype; as before afterwards.

    int8 rounds its inputs, and 4-bit weights multiply in the compute dtype: a wrong mask could hide in that.
    """
    # a parameter of their own: PEFT's layers show the one that they wrap
    layers = [m for m in model.modules() if type(m._parameters.get("weight")).__name__ in _PARAMETERS]
    own = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = partial(_multiply, layer)
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def _multiply(layer: Any, x: Tensor) -> Tensor:
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
    return F.linear(x, weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))
