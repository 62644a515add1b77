"""Models and tokenizers from folders; what cannot be loaded says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from holdfast.errors import ConfigError, ModelError
from holdfast.models.loading import load_model, load_tokenizer, read_chat_template
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("llama", 300).save_pretrained(path)
    tiny_bpe_tokenizer(["hello"], 300).save_pretrained(path)
    return path


def test_folder_loads_with_dtype(folder: Path) -> None:
    assert load_model(str(folder)).dtype == torch.float32
    assert load_model(str(folder), dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(str(folder), attention="eager").config._attn_implementation == "eager"


def test_missing_folder_and_unknown_dtype(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="float99"):
        load_model(str(folder), dtype="float99")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama", 300)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no weights as safetensors.*pytorch_model.bin"):
        load_model(str(tmp_path))


def test_chat_template_from_file_and_from_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    assert load_tokenizer(str(folder), chat_template=str(template)).chat_template == template.read_text()
    assert read_chat_template(str(folder)).startswith("{% for message")
    with pytest.raises(ModelError, match="no such file"):
        read_chat_template("missing.jinja")


def test_a_tokenizer_without_padding_gets_its_end_token(tmp_path: Path) -> None:
    tokenizer = tiny_bpe_tokenizer(["hello"], 300)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token_id == tokenizer.eos_token_id
