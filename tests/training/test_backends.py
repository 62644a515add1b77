"""What a trainer computes with is chosen by itself, said once, and can be chosen by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from holdfast import PreferenceConfig, PreferenceTrainer
from holdfast.errors import ConfigError
from holdfast.ops.linear import onednn_is_faster
from holdfast.training import backends, config, lean_trainer
from tests.training.conftest import rows


def test_the_backends_are_printed_once_and_can_be_chosen(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    backends._say_once.cache_clear()
    logs = []
    for head in ("auto", "auto", "reference", "chunked"):
        settings = arguments | {"disable_tqdm": False, "head_implementation": head, "max_steps": 1}
        trainer = PreferenceTrainer(
            model=model_of(),
            args=PreferenceConfig(**settings),
            train_dataset=rows(4),
            processing_class=tokenizer,
        )
        trainer.train()
        logs.append(next(log["loss"] for log in trainer.state.log_history if "loss" in log))
    assert logs == pytest.approx([logs[0]] * 4, rel=1e-5)
    said = [line for line in capsys.readouterr().err.splitlines() if "LM head" in line]
    attention, form = "attention: sdpa", "rows: shared prefix, without padding"
    if onednn_is_faster():  # by the processor
        attention += "; float32 projections: oneDNN"
    assert said == [
        f"LM head: torch, a block of the vocabulary at a time; {attention}; {form}",
        f"LM head: torch, whole logits; {attention}; {form}",
    ]


@pytest.mark.parametrize(
    ("settings", "slower", "words"),
    [
        ({"bf16": True}, True, "sdpa, in float32"),
        ({"bf16": True}, False, "sdpa"),
        ({}, True, "sdpa"),
        ({"bf16": True, "padding_free": False}, True, "sdpa"),  # transformers' own attention
    ],
)
def test_attention_says_when_it_widens_half_precision(
    settings: dict[str, Any],
    slower: bool,
    words: str,
    model_of: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lean_trainer, "widens", lambda dtype: slower and dtype == torch.bfloat16)
    trainer = PreferenceTrainer(
        model=model_of(),
        args=PreferenceConfig(**arguments | settings),
        train_dataset=rows(4),
        processing_class=tokenizer,
    )
    assert trainer.backends["attention"] == words


@pytest.mark.parametrize(
    ("given", "installed", "message"),
    [
        ("chunkd", True, "head_implementation: unknown implementation 'chunkd'.*chunked"),
        ("triton", True, "head_implementation: triton needs a CUDA GPU"),
        ("triton", False, "head_implementation: triton needs the package triton: pip install triton"),
    ],
)
def test_a_head_that_cannot_be_computed_so_is_refused_at_once(
    given: str, installed: bool, message: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "find_spec", lambda name: name if installed else None)
    with pytest.raises(ConfigError, match=message):
        PreferenceConfig(**arguments, head_implementation=given)
