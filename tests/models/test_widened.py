"""Half-precision weights compute in float32 where they are used, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from holdfast.models.adapters import attach_adapter, lora_config
from holdfast.models.tiny import tiny_model
from holdfast.models.widened import in_float32
from tests.models.conftest import VOCAB

IDS = torch.arange(7)[None]


def dtypes(module: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in module.parameters()}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@torch.no_grad()
def test_logits_are_those_of_the_widened_model(family: str, adapter: bool) -> None:
    model: Any = tiny_model(family, VOCAB, dtype=torch.bfloat16)
    if adapter:
        model = attach_adapter(model, lora_config(model, rank=4, alpha=8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decoder = (model.get_base_model() if adapter else model).get_decoder()
    with torch.autocast("cpu", torch.bfloat16), in_float32(model, decoder):
        found = model(input_ids=IDS, use_cache=False).logits
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.float()(input_ids=IDS, use_cache=False).logits)


@torch.no_grad()
def test_one_layer_is_wide_at_a_time() -> None:
    """A model that fills the memory in half precision would not fit in float32."""
    model: Any = tiny_model("llama", VOCAB, layers=3, dtype=torch.bfloat16)
    layers, seen = model.model.layers, []
    for layer in layers:
        layer.mlp.register_forward_hook(lambda *_: seen.append([dtypes(other) for other in layers]))
    with in_float32(model, model.model):
        model(input_ids=IDS, use_cache=False)
    wide, half = {torch.float32}, {torch.bfloat16}
    assert seen == [[wide, half, half], [half, wide, half], [half, half, wide]]


@torch.no_grad()
def test_a_forward_that_fails_leaves_the_weights() -> None:
    model: Any = tiny_model("llama", VOCAB, dtype=torch.bfloat16)

    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle")

    handle = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"), in_float32(model, model.model):
        model(input_ids=IDS, use_cache=False)
    assert dtypes(model) == {torch.bfloat16}
    handle.remove()
    assert model(input_ids=IDS, use_cache=False).logits.dtype == torch.bfloat16
