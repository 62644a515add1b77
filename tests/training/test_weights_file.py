"""The weights of a checkpoint: read back bit for bit, and a folder that the usual loaders take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from holdfast.errors import CheckpointError, ConfigError
from holdfast.models.adapters import attach_adapter, is_tied, lora_config
from holdfast.models.tiny import tiny_config, tiny_model
from holdfast.training.weights_file import (
    gather_weights,
    own_weights,
    read_weights,
    require_saved,
    write_weights,
)

VOCABULARY = 60
SHAPES = [(family, tied) for family in ("llama", "qwen3", "gemma3", "gemma2") for tied in (False, True)]


def model_of(family: str, tied: bool, lora: bool, seed: int = 0, **options: Any) -> Any:
    model = tiny_model(family, VOCABULARY, hidden_size=32, tie_word_embeddings=tied, seed=seed, **options)
    assert is_tied(model) == tied
    return attach_adapter(model, lora_config(model, rank=3)) if lora else model


def shaken(model: Any) -> Any:
    """The model with every trained number another, as training leaves it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def saved(model: Any, folder: Path) -> Path:
    folder.mkdir()
    write_weights(model, gather_weights(model), folder)
    return folder


def require_equal(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert [name for name in one if one[name].dtype != other[name].dtype] == []


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("family", "tied"), SHAPES)
def test_read_back_bit_for_bit(tmp_path: Path, family: str, tied: bool, lora: bool) -> None:
    trained = shaken(model_of(family, tied, lora))
    folder = saved(trained, tmp_path / "checkpoint")
    fresh = model_of(family, tied, lora)
    assert any(
        not torch.equal(tensor, trained.state_dict()[name]) for name, tensor in fresh.state_dict().items()
    )
    read_weights(fresh, folder)
    require_equal(fresh.state_dict(), trained.state_dict())
    base = fresh.get_base_model() if lora else fresh
    assert is_tied(base) == tied
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors"}


@pytest.mark.parametrize(("family", "tied"), SHAPES)
def test_the_usual_loaders_take_it(tmp_path: Path, family: str, tied: bool) -> None:
    whole = shaken(model_of(family, tied, lora=False))
    loaded, told = AutoModelForCausalLM.from_pretrained(
        saved(whole, tmp_path / "whole"), output_loading_info=True
    )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    require_equal(loaded.state_dict(), whole.state_dict())
    adapted = shaken(model_of(family, tied, lora=True))
    adapter = PeftModel.from_pretrained(
        tiny_model(family, VOCABULARY, hidden_size=32, tie_word_embeddings=tied),
        str(saved(adapted, tmp_path / "adapter")),
    )
    ids = torch.arange(20).view(2, 10)
    adapted.eval(), adapter.eval()
    assert torch.equal(adapter(input_ids=ids).logits, adapted(input_ids=ids).logits)


def test_a_tied_matrix_is_written_once(tmp_path: Path) -> None:
    assert "lm_head.weight" not in own_weights(model_of("qwen3", True, lora=False))
    assert "lm_head.weight" in own_weights(model_of("qwen3", False, lora=False))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_model_with_a_vision_tower(tmp_path: Path, lora: bool) -> None:
    """Gemma 3 as it is published: its parts are named otherwise in the model than in older files."""

    def build() -> Any:
        text = tiny_config("gemma3", VOCABULARY, hidden_size=32)
        vision = {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        config = Gemma3Config(
            text_config=text.to_dict(),
            vision_config=vision | {"image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            image_token_index=VOCABULARY - 1,
        )
        torch.manual_seed(0)
        model = Gemma3ForConditionalGeneration(config)
        return attach_adapter(model, lora_config(model, rank=3)) if lora else model

    trained = shaken(build())
    folder = saved(trained, tmp_path / "checkpoint")
    fresh = build()
    read_weights(fresh, folder)
    require_equal(fresh.state_dict(), trained.state_dict())
    if not lora:
        loaded, told = Gemma3ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        require_equal(loaded.state_dict(), trained.state_dict())


def test_mixed_number_formats(tmp_path: Path) -> None:
    def build() -> Any:
        model = model_of("llama", False, lora=False, dtype=torch.bfloat16)
        model.lm_head.float()
        return model

    trained = shaken(build())
    fresh = build()
    read_weights(fresh, saved(trained, tmp_path / "checkpoint"))
    require_equal(fresh.state_dict(), trained.state_dict())


def test_weights_in_several_files(tmp_path: Path) -> None:
    trained = shaken(model_of("llama", False, lora=False))
    trained.save_pretrained(tmp_path / "parts", max_shard_size="20KB", save_original_format=False)
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 3
    fresh = model_of("llama", False, lora=False)
    read_weights(fresh, tmp_path / "parts")
    require_equal(fresh.state_dict(), trained.state_dict())


def test_another_models_weights(tmp_path: Path) -> None:
    folder = saved(model_of("llama", False, lora=False), tmp_path / "llama")
    with pytest.raises(
        CheckpointError, match=r"llama' lack 'model\.layers\.0\.self_attn\.k_norm\.weight' \(and"
    ):
        read_weights(model_of("qwen3", False, lora=False), folder)
    with pytest.raises(CheckpointError, match=r"llama' have 'lm_head\.weight' \(and 0 more\)"):
        read_weights(model_of("llama", True, lora=False), folder)
    wider = tiny_model("llama", VOCABULARY, hidden_size=32, intermediate_size=64)
    with pytest.raises(CheckpointError, match=r"of shape \(96, 32\); the model's is .* of shape \(64, 32\)"):
        read_weights(wider, folder)
    with pytest.raises(CheckpointError, match=r"is torch\.float32 of .* the model's is torch\.bfloat16"):
        read_weights(model_of("llama", False, lora=False, dtype=torch.bfloat16), folder)
    with pytest.raises(CheckpointError, match="the weights in '.*nothing' cannot be read"):
        read_weights(wider, tmp_path / "nothing")


def test_what_is_trained_and_would_not_be_saved() -> None:
    adapted = model_of("qwen3", True, lora=True)
    require_saved(adapted)
    name = "base_model.model.model.norm.weight"
    adapted.get_parameter(name).requires_grad_(True)
    with pytest.raises(ConfigError, match=f"'{name}' is trained, and is not in the adapter"):
        require_saved(adapted)
    require_saved(model_of("qwen3", True, lora=False))
