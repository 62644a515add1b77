"""A tiny model that answers, in a folder as a trained one is."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model

TEXT = "the tide comes in and goes out again while small boats wait for wind near old stone piers"


@pytest.fixture(scope="session")
def answering_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the Llama family, whose untied head keeps random weights from saying one token for ever; float32."""
    folder = tmp_path_factory.mktemp("answering") / "tiny"
    tokenizer = answering_tokenizer()
    model = tiny_model("llama", len(tokenizer), eos_token_id=tokenizer.eos_token_id, seed=3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answering_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML turns."""
    return tiny_bpe_tokenizer([TEXT] * 3, 320)
