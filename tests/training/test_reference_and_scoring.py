"""Scores of whole data sets: each pair's own, in order, whatever the batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from holdfast import PreferenceConfig, PreferenceTrainer
from holdfast.errors import ConfigError
from holdfast.files import cache_folder
from holdfast.models.adapters import attach_adapter, lora_config
from holdfast.training.reference import reference_key
from holdfast.training.scoring import score_pairs, take
from tests.training.conftest import rows


def build(model: Any, tokenizer: Any, arguments: dict[str, Any], **settings: Any) -> PreferenceTrainer:
    return PreferenceTrainer(
        model=model,
        args=PreferenceConfig(**settings, **arguments),
        train_dataset=rows(7),
        processing_class=tokenizer,
    )


def test_take_by_hand() -> None:
    logps, mask = take(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([[0, 2], [1, -1]]))
    assert logps.tolist() == [[-1.0, -3.0], [-2.0, 0.0]]
    assert mask.tolist() == [[True, True], [True, False]]


def test_each_pair_alone_scores_the_same(model_of: Any, tokenizer: Any, arguments: dict[str, Any]) -> None:
    trainer = build(model_of().double(), tokenizer, arguments, per_device_eval_batch_size=3)
    together = score_pairs(trainer, trainer.train_dataset, "all")
    for index in range(7):
        alone = score_pairs(trainer, trainer.train_dataset.select([index]), "one")
        torch.testing.assert_close(together.chosen[index : index + 1], alone.chosen, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(together.rejected[index : index + 1], alone.rejected, rtol=1e-6, atol=1e-6)
    lengths = [len(ids) for ids in trainer.train_dataset["rejected_ids"]]
    assert together.rejected_tokens.tolist() == lengths
    assert trainer.model.training


def test_key_follows_weights_rows_and_precision(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    trainer = build(model_of(), tokenizer, arguments)
    model, dataset = trainer.model, trainer.train_dataset
    key = reference_key(model, dataset, "no")
    assert key == reference_key(model_of(), dataset, "no")
    assert key != reference_key(model, dataset, "bf16")
    assert key != reference_key(model, dataset.select(range(6)), "no")
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 3] += 1e-6
    assert key != reference_key(model, dataset, "no")


def test_key_follows_what_the_model_does_with_its_weights(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    """Equal tensors, another function: a cached reference must not serve both."""
    trainer = build(model_of(), tokenizer, arguments)
    dataset = trainer.train_dataset
    keys = {reference_key(model_of(family), dataset, "no") for family in ("qwen3", "gemma3")}
    for window in (3, 7):
        keys.add(reference_key(model_of("gemma3", sliding_window=window), dataset, "no"))
    for alpha in (8, 64):
        model = model_of()
        keys.add(reference_key(attach_adapter(model, lora_config(model, rank=4, alpha=alpha)), dataset, "no"))
    assert len(keys) == 6


def test_cache_folder_follows_setting_then_environment(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "env"))
    assert cache_folder(None) == tmp_path / "env"
    assert cache_folder(str(tmp_path / "set")) == tmp_path / "set"


def test_activation_checkpointing_changes_nothing(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    losses = []
    for checkpointing in (False, True):
        trainer = build(
            model_of(),
            tokenizer,
            arguments,
            activation_checkpointing=checkpointing,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=1,
            learning_rate=1e-2,
        )
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"torn",
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: save({name: torch.zeros(6) for name in ("chosen", "rejected")}),
        lambda content: save({"other": torch.zeros(6)}),
    ],
    ids=["torn", "a flipped bit", "without a checksum", "of something else"],
)
def test_a_broken_cache_file_is_computed_again(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any], spoil: Callable[[bytes], bytes]
) -> None:
    first = build(model_of(), tokenizer, arguments, objective="dpo")
    (path,) = Path(arguments["cache_dir"]).glob("reference-*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    again = build(model_of(), tokenizer, arguments, objective="dpo")
    assert again.train_dataset["reference_chosen"] == first.train_dataset["reference_chosen"]
    assert path.read_bytes() == whole


def test_unknown_adapter_settings_are_named(model_of: Any, tokenizer: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="unknown setting 'r'"):
        PreferenceTrainer(
            model=model_of(),
            args=PreferenceConfig(**arguments),
            train_dataset=rows(2),
            processing_class=tokenizer,
            peft_config={"r": 4},
        )
