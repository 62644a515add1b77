"""Training beside quantized weights, and with optimizers whose moments are quantized."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast import PreferenceConfig, PreferenceTrainer, SFTConfig, SFTTrainer
from holdfast.errors import ConfigError
from holdfast.experiments.config import parse_config
from holdfast.models import quantized
from holdfast.models.adapters import attach_adapter, lora_config
from holdfast.models.loading import load_model
from holdfast.models.quantized import QUANTIZATIONS, is_quantized, quantization_options
from holdfast.training.preparation import prepare_model

from .conftest import rows

needs_package = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (holdfast[quantized])"
)
TRAINERS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTTrainer, SFTConfig),
    "align": (PreferenceTrainer, PreferenceConfig),
}


@pytest.fixture
def folder(model_of: Any, tokenizer: Any, tmp_path: Path) -> str:
    model_of("qwen3").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def trainer_of(stage: str, model: Any, arguments: dict[str, Any], **options: Any) -> Any:
    trainer_class, config_class = TRAINERS[stage]
    peft_config = options.pop("peft_config", {"rank": 4})
    settings = arguments | {"per_device_train_batch_size": 2, "max_steps": 3, "learning_rate": 1e-3} | options
    return trainer_class(
        model=model, args=config_class(**settings), train_dataset=rows(8), peft_config=peft_config
    )


def losses(trainer: Any) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


# ---- weights


@needs_package
@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("stage", TRAINERS)
def test_trains_as_on_plain_weights_of_the_same_values(
    stage: str, kind: str, folder: str, arguments: dict[str, Any], tokenizer: Any
) -> None:
    trainer = trainer_of(stage, folder, arguments, quantization=kind)
    assert is_quantized(trainer.model)
    assert trainer.padding_free
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.model.named_parameters() if n in frozen)
    quantized_again = load_model(folder, quantized=quantization_options(kind, torch.float32, "cpu"))
    plain = quantized_again.dequantize(torch.float32)
    same = trainer_of(stage, plain, arguments | {"output_dir": arguments["output_dir"] + "2"})
    same.train()
    # int8 rounds what it multiplies
    assert losses(trainer) == pytest.approx(losses(same), rel=0.02 if kind == "int8" else 1e-4)
    assert losses(trainer)[-1] < losses(trainer)[0]


@needs_package
@pytest.mark.parametrize("reentrant", [False, True])
def test_with_activation_checkpointing(reentrant: bool, folder: str, arguments: dict[str, Any]) -> None:
    """Inputs of frozen layers carry gradients there, by transformers' hook."""
    plain = trainer_of("align", folder, arguments, quantization="nf4")
    plain.train()
    options = {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": reentrant},
    }
    again = trainer_of("align", folder, arguments, quantization="nf4", **options)
    again.train()
    assert losses(again) == losses(plain)


@needs_package
def test_the_head_is_trained_whole_and_stays_tied(folder: str, arguments: dict[str, Any]) -> None:
    trainer = trainer_of("align", folder, arguments, quantization="nf4")
    inner = trainer.model.get_base_model()
    head, embeddings = inner.get_output_embeddings().weight, inner.get_input_embeddings().weight
    assert head is embeddings
    assert head.requires_grad
    before = head.detach().clone()
    trainer.train()
    assert (head - before).abs().max() > 1e-4


@needs_package
def test_a_reference_is_the_quantized_start(folder: str, arguments: dict[str, Any]) -> None:
    """The first step of DPO, whose reference is the start itself, has a loss of log 2."""
    trainer = trainer_of("align", folder, arguments, quantization="nf4", objective="dpo")
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.6931, abs=1e-3)


@needs_package
@pytest.mark.parametrize("stage", TRAINERS)
def test_a_resumed_run_is_the_run(stage: str, folder: str, arguments: dict[str, Any]) -> None:
    """With the moments in 8 bits too."""
    options = {"quantization": "nf4", "optim": "adamw_bnb_8bit", "save_strategy": "steps", "save_steps": 1}
    whole = trainer_of(stage, folder, arguments, **options)
    whole.train()
    resumed = trainer_of(stage, folder, arguments, **options)
    resumed.train(resume_from_checkpoint=str(Path(arguments["output_dir"]) / "checkpoint-1"))
    expected = {n: p for n, p in whole.model.named_parameters() if p.requires_grad}
    found = {n: p for n, p in resumed.model.named_parameters() if p.requires_grad}
    assert expected.keys() == found.keys()
    assert all(torch.equal(p, found[n]) for n, p in expected.items())


@needs_package
@pytest.mark.parametrize("stage", TRAINERS)
def test_without_an_adapter_there_is_nothing_to_train(
    stage: str, folder: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"nothing to train: give an adapter"):
        trainer_of(stage, folder, arguments, quantization="nf4", peft_config=None)


@needs_package
def test_an_adapted_quantized_model_is_taken_as_it_is(folder: str, arguments: dict[str, Any]) -> None:
    first = trainer_of("align", folder, arguments, quantization="nf4")
    base = first.model.unload()
    model = attach_adapter(base, lora_config(base, rank=4))
    trainer = trainer_of("align", model, arguments, peft_config=None)
    trainer.train()
    assert len(losses(trainer)) == 3


@needs_package
@pytest.mark.parametrize("launched", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_quantized_weights_are_not_shared_out(
    launched: str, folder: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    args = PreferenceConfig(**arguments, quantization="nf4")
    monkeypatch.setenv(launched, "true")
    with pytest.raises(ConfigError, match="launch without FSDP and DeepSpeed"):
        prepare_model(folder, args, {"rank": 4}, [], tokenizer)


def test_a_loaded_model_is_not_quantized_in_place(
    model_of: Any, arguments: dict[str, Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: object())
    args = SFTConfig(**arguments, quantization="nf4")
    with pytest.raises(ConfigError, match="this one is loaded already"):
        prepare_model(model_of(), args, {"rank": 4}, [], tokenizer)


# ---- settings


RUN: dict[str, Any] = {
    "model": {"name": "some/model", "quantization": "nf4"},
    "data": {"source": "rows.jsonl"},
    "align": {},
    "output_dir": "out",
}


def test_a_run_is_quantized_under_an_adapter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: object())
    assert parse_config(RUN).model.quantization == "nf4"
    with pytest.raises(
        ConfigError, match=r"model\.quantization: nf4 freezes the weights, so it needs an adapter"
    ):
        parse_config(RUN | {"adapter": None})
    with pytest.raises(
        ConfigError, match=r"align\.quantization: is set for the whole run, as `model\.quantization`"
    ):
        parse_config(RUN | {"align": {"quantization": "nf4"}})


def test_a_run_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="quantization: nf4: needs the package bitsandbytes"):
        parse_config(RUN)


# ---- moments


@pytest.mark.parametrize(
    "optim", ["adamw_bnb_8bit", "paged_adamw_8bit", "adamw_8bit", "paged_lion_32bit", "ademamix"]
)
@pytest.mark.parametrize("stage", TRAINERS)
def test_optimizers_of_a_missing_package(
    stage: str, optim: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a row is read or a model loaded."""
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"optim: {optim}: needs the package bitsandbytes"):
        TRAINERS[stage][1](**arguments, optim=optim)


def test_optimizers_of_torch_need_no_package(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    for optim in ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd"):
        assert PreferenceConfig(**arguments, optim=optim).optim == optim


@needs_package
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit"])
@pytest.mark.parametrize("stage", TRAINERS)
def test_moments_in_eight_bits(
    stage: str, optim: str, model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    """All weights trained: the loss falls as with whole moments, and a resumed run is the run."""
    options = {"peft_config": None, "optim": optim, "save_strategy": "steps", "save_steps": 1}

    def trained(resume: str | None = None, **changes: Any) -> Any:
        trainer_class, config_class = TRAINERS[stage]
        settings = arguments | {"per_device_train_batch_size": 2, "max_steps": 3, "learning_rate": 1e-3}
        settings |= {key: value for key, value in options.items() if key != "peft_config"} | changes
        trainer = trainer_class(model_of(), config_class(**settings), rows(8), processing_class=tokenizer)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    eight = trained()
    optimizer = eight.optimizer.optimizer
    formats = {
        tuple(p.shape): state["state1"].dtype for p, state in optimizer.state.items() if p.numel() >= 1 << 13
    }
    embeddings = tuple(eight.model.get_input_embeddings().weight.shape)
    assert formats.pop(embeddings) == torch.float32  # kept whole: their gradients are the least even
    assert set(formats.values()) == {torch.uint8}
    resumed = trained(str(Path(arguments["output_dir"]) / "checkpoint-1"))
    for a, b in zip(eight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    whole = trained(optim="adamw_torch", output_dir=arguments["output_dir"] + "2")
    assert losses(eight) == pytest.approx(losses(whole), rel=1e-3)
    assert losses(eight)[0] == pytest.approx(losses(whole)[0], rel=1e-6)
