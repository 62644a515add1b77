"""A half-precision or quantized model that computes in float32, for as long as it takes to measure something exactly.

Weights are widened where they are used, a layer at a time: in float32 as a whole, a model that fits in memory may not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.models.quantized import exact_products

HALF = (torch.float16, torch.bfloat16)


@contextmanager
def in_float32(model: nn.Module, decoder: nn.Module) -> Iterator[None]:
    """Half-precision and quantized weights multiply in float32, without autocast; all as it was afterwards.

    Args:
        model: runs inside; a decoder layer's weights are float32 while it runs, and so are any other module's own.
        decoder: of the model; its `layers` are widened as wholes.
    """
    layers = getattr(decoder, "layers", None)
    whole = list(layers) if isinstance(layers, nn.ModuleList) else []
    inside = {id(module) for layer in whole for module in layer.modules()}
    parts = [(layer, _half(layer.parameters(), layer.buffers())) for layer in whole]
    parts += [
        (module, _half(module._parameters.values(), module._buffers.values()))
        for module in model.modules()
        if id(module) not in inside
    ]
    handles: list[Any] = []
    try:
        for module, tensors in parts:
            if tensors:
                handles += _widen_while_it_runs(module, tensors)
        with torch.autocast(next(model.parameters()).device.type, enabled=False), exact_products(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _half(*groups: Any) -> list[Tensor]:
    return [tensor for tensor in chain(*groups) if tensor is not None and tensor.dtype in HALF]


def _widen_while_it_runs(module: nn.Module, tensors: list[Tensor]) -> list[Any]:
    """Handles of the two hooks."""
    former: list[list[Tensor]] = []

    def before(module: Any, args: Any) -> None:
        former.append([tensor.data for tensor in tensors])
        for tensor in tensors:
            tensor.data = tensor.data.float()

    def after(module: Any, args: Any, output: Any) -> None:
        for tensor, data in zip(tensors, former.pop(), strict=True):
            tensor.data = data

    return [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, always_call=True),
    ]
