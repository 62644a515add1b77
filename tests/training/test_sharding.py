"""A model in one piece again: blanks that are filled. Sharded ones: see tests/faults/test_processes*.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from holdfast import PreferenceConfig, PreferenceTrainer
from holdfast.errors import ConfigError
from holdfast.models.adapters import attach_adapter, is_tied, lora_config, merge_adapter
from holdfast.models.token_logprobs import causal_lm_of, install_logprob_forward
from holdfast.training.sharding import blank_copy, filled
from tests.training.conftest import rows


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_filled_blank_is_the_model(family: str, adapter: bool, model_of: Any) -> None:
    model = model_of(family)
    if adapter:
        model = attach_adapter(model, lora_config(model, rank=4))
    install_logprob_forward(model)
    blank = blank_copy(model)
    assert all(parameter.is_meta for parameter in blank.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):  # a blank stays blank
        whole = filled(blank, state)
        assert is_tied(causal_lm_of(whole)) == is_tied(causal_lm_of(model))
        assert [name for name, p in whole.named_parameters() if p.requires_grad] == [
            name for name, p in model.named_parameters() if p.requires_grad
        ]
        ids = torch.tensor([[5, 6, 7, 8]])
        with torch.no_grad():
            assert torch.equal(whole.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
        if adapter:
            merge_adapter(whole)


@pytest.mark.parametrize("name", ["split_batches", "dispatch_batches"])
def test_other_ways_to_share_rows_are_refused(
    name: str, model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"accelerator_config.{name}"):
        PreferenceTrainer(
            model=model_of(),
            args=PreferenceConfig(accelerator_config={name: True}, **arguments),
            train_dataset=rows(4),
            processing_class=tokenizer,
        )
