"""A tiny model, a tokenizer and real-looking rows for the trainers' tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model

WORDS = "the tide comes in and goes out again while small boats wait for wind near old stone piers".split()


def rows(count: int) -> list[dict[str, Any]]:
    """Preference rows of varied lengths."""
    return [
        {
            "prompt": " ".join(WORDS[n % 7 : n % 7 + 3 + n % 5]) + f" {n}?",
            "chosen": " ".join(WORDS[(3 * n) % 9 : (3 * n) % 9 + 1 + n % 6]),
            "rejected": " ".join(WORDS[(5 * n) % 11 : (5 * n) % 11 + 2 + n % 4]) + "!",
        }
        for n in range(count)
    ]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_bpe_tokenizer([" ".join(WORDS)] * 3, 320)


@pytest.fixture
def model_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """A fresh model of a family; two calls give equal models."""

    def build(family: str = "qwen3", **overrides: Any) -> Any:
        return tiny_model(family, len(tokenizer), eos_token_id=tokenizer.eos_token_id, **overrides)

    return build


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    """Settings every test's trainer shares."""
    return {
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "max_length": 64,
        "cache_dir": str(tmp_path / "cache"),
        "logging_steps": 1,
    }
