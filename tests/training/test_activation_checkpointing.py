"""Layers that are computed again in the backward: the same run, whichever way, and fewer tensors that wait."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast import PreferenceConfig, PreferenceTrainer, SFTConfig, SFTTrainer
from holdfast.errors import ConfigError

from .conftest import rows

TRAINERS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTTrainer, SFTConfig),
    "align": (PreferenceTrainer, PreferenceConfig),
}
WAYS = [
    {},
    {"use_reentrant": True},
    {"use_reentrant": False, "preserve_rng_state": False},
    {"every_n_layers": 2},
]


def trainer_of(
    stage: str, model: Any, tokenizer: Any, arguments: dict[str, Any], lora: bool, **options: Any
) -> Any:
    trainer_class, config_class = TRAINERS[stage]
    settings = arguments | {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-3} | options
    return trainer_class(
        model,
        config_class(**settings),
        rows(8),
        processing_class=tokenizer,
        peft_config={"rank": 4, "dropout": 0.1} if lora else None,
    )


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("stage", TRAINERS)
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_the_same_run(
    family: str, stage: str, lora: bool, model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    """Bit by bit, with flattened rows; the same dropout is drawn again, unless it need not be."""
    found = []
    ways: list[dict[str, Any] | None] = [None, *(w for w in WAYS if not (lora and "preserve_rng_state" in w))]
    for way in ways:
        on = {} if way is None else {"activation_checkpointing": True, "activation_checkpointing_kwargs": way}
        trainer = trainer_of(stage, model_of(family), tokenizer, arguments, lora, **on)
        assert trainer.padding_free
        trainer.train()
        logs = [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "grad_norm" in log]
        assert len(logs) == 2
        found.append(logs)
    assert all(logs == found[0] for logs in found)


def as_it_was(tensor: Tensor) -> Tensor:
    return tensor


def test_less_waits_for_the_backward(model_of: Any, tokenizer: Any, arguments: dict[str, Any]) -> None:
    kept: list[int] = []
    for on in (
        {},
        {"activation_checkpointing_kwargs": {"every_n_layers": 2}},
        {"activation_checkpointing_kwargs": {}},
    ):
        options: dict[str, Any] = {"activation_checkpointing": bool(on), **on, "max_steps": 1}
        trainer = trainer_of("align", model_of(), tokenizer, arguments, False, **options)
        weights = {p.data_ptr() for p in trainer.model.parameters()}
        held: dict[int, Tensor] = {}

        def pack(tensor: Tensor, held: Any = held, weights: Any = weights) -> Tensor:
            if tensor.data_ptr() not in weights:
                held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        measure = trainer.measure

        def measured(*args: Any, own: Any = measure, pack: Any = pack) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(pack, as_it_was):
                return own(*args)

        trainer.measure = measured
        trainer.train()
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in held.values()))
    none, every_second, every = kept
    assert every < every_second < none


@pytest.mark.parametrize("stage", TRAINERS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_checkpointing_kwargs": {"use_reentrant": False}}, "no effect without"),
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrent": True}},
            r"unknown key 'use_reentrent' \(did you mean 'use_reentrant'\?\)",
        ),
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"offload": True}},
            "from an accelerator to the host, and there is none",
        ),
    ],
)
def test_refusals(stage: str, options: dict[str, Any], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=message):
        TRAINERS[stage][1](**arguments, **options)
