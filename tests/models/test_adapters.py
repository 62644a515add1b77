"""LoRA on tied and untied heads, and merges that keep what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    SiglipVisionConfig,
)

from holdfast.data.collate import PairCollator
from holdfast.errors import ModelError
from holdfast.models.adapters import attach_adapter, is_tied, lora_config, merge_adapter, probe_logprobs
from holdfast.models.export import save_final
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_config, tiny_model
from holdfast.models.token_logprobs import causal_lm_of, install_logprob_forward, token_logprobs

VOCAB = 61
PAIR = [{"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6, 7, 8], "row_index": 0}]


def trained_a_little(model: Any, steps: int = 3) -> Any:
    """A few steps, so that every trained part differs from where it started."""
    install_logprob_forward(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    batch = PairCollator(0)(PAIR)
    for _ in range(steps):
        optimizer.zero_grad()
        (-token_logprobs(model, batch)).mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_paper_settings_train_projections_and_head(family: str, tied: bool) -> None:
    model = tiny_model(family, VOCAB, tie_word_embeddings=tied)
    peft_model = attach_adapter(model, lora_config(model))
    config = peft_model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (64, 128, 0.0)
    assert set(config.target_modules) == set(
        "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    )
    assert is_tied(causal_lm_of(peft_model)) is tied
    trained = {name for name, p in peft_model.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in trained)
    # named_parameters lists a shared matrix once, under the embeddings
    assert any(("embed_tokens" if tied else "lm_head") in name for name in trained)
    assert not any("norm" in name for name in trained)


@pytest.mark.parametrize("tied", [True, False])
def test_merged_model_computes_what_was_trained(tied: bool) -> None:
    torch.manual_seed(0)  # LoRA's own start is random
    model = tiny_model("qwen3", VOCAB, tie_word_embeddings=tied)
    start = probe_logprobs(model)
    peft_model = trained_a_little(attach_adapter(model, lora_config(model, rank=4, alpha=8)))
    trained = probe_logprobs(peft_model)
    assert (trained - start).abs().max() > 0.01, "training changed nothing: the test could not fail"
    merged = merge_adapter(peft_model)
    torch.testing.assert_close(probe_logprobs(merged), trained, rtol=1e-5, atol=1e-5)
    assert is_tied(merged) is tied


def test_tied_head_moves_with_the_embeddings() -> None:
    model = tiny_model("qwen3", VOCAB)
    before = model.get_input_embeddings().weight.detach().clone()
    peft_model = trained_a_little(attach_adapter(model, lora_config(model, rank=4)))
    merged = merge_adapter(peft_model)
    assert merged.lm_head.weight is merged.get_input_embeddings().weight
    assert not torch.equal(merged.lm_head.weight, before)


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["lm_head"]])
def test_lora_on_the_head_is_refused(targets: list[str]) -> None:
    model = tiny_model("qwen3", VOCAB)
    with pytest.raises(ModelError, match="train the whole head|Train the whole head"):
        attach_adapter(model, LoraConfig(target_modules=targets, task_type="CAUSAL_LM"))


def test_lora_on_the_head_is_refused_in_a_ready_peft_model() -> None:
    from peft import get_peft_model

    peft_model = get_peft_model(
        tiny_model("llama", VOCAB), LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM")
    )
    with pytest.raises(ModelError, match="LoRA target"):
        install_logprob_forward(peft_model)


def test_lora_on_tied_embeddings_is_refused() -> None:
    model = tiny_model("qwen3", VOCAB)
    with pytest.raises(ModelError, match="input embeddings are a LoRA target|LoRA target"):
        attach_adapter(model, LoraConfig(target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"))


def test_conv1d_projections_are_found() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=2))
    assert set(lora_config(model).target_modules) == {"c_attn", "c_proj", "c_fc"}


@pytest.mark.parametrize("tied", [True, False])
def test_half_precision_base_with_a_trained_head_is_merged(tied: bool) -> None:
    """On a tied model the first parameter is the trained float32 matrix: the body is bfloat16 all the same."""
    model = tiny_model(
        "qwen3", VOCAB, dtype=torch.bfloat16, layers=12, hidden_size=128, tie_word_embeddings=tied
    )
    peft_model = attach_adapter(model, lora_config(model, rank=4, alpha=8))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    merge_adapter(peft_model)


def test_trained_parameters_are_float32_on_a_half_precision_base() -> None:
    """A bfloat16 head would swallow updates of 5e-7."""
    model = tiny_model("qwen3", VOCAB, dtype=torch.bfloat16)
    peft_model = attach_adapter(model, lora_config(model, rank=4))
    dtypes = {p.requires_grad: p.dtype for p in peft_model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert is_tied(causal_lm_of(peft_model))


def test_vision_language_checkpoint_is_trained_in_its_text_part_only(tmp_path: Path) -> None:
    """Gemma 3 4B ships so; text-only rows need neither images nor token types."""
    text = tiny_config("gemma3", VOCAB)
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_id=VOCAB - 1
    )
    model = Gemma3ForConditionalGeneration(config)
    peft_model = attach_adapter(model, lora_config(model, rank=4))
    trained = [name for name, p in peft_model.named_parameters() if p.requires_grad]
    assert trained
    assert not any("vision" in name for name in trained)
    trained_a_little(peft_model)
    batch = PairCollator(0)(PAIR)
    shared = token_logprobs(peft_model, batch)
    plain_batch = PairCollator(0, shared_prefix=False)(PAIR)
    plain = token_logprobs(peft_model, plain_batch)
    torch.testing.assert_close(shared[batch["rejected_slots"][0]], plain[plain_batch["rejected_slots"][0]])
    before = probe_logprobs(peft_model)
    merged = merge_adapter(peft_model)
    torch.testing.assert_close(probe_logprobs(merged), before, rtol=1e-4, atol=1e-4)
    assert type(merged) is Gemma3ForConditionalGeneration
    # saved, it loads as it came
    save_final(merged, tiny_bpe_tokenizer(["a"], 300), tmp_path / "final")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert type(loaded) is Gemma3ForConditionalGeneration
    torch.testing.assert_close(probe_logprobs(loaded), before, rtol=1e-4, atol=1e-4)
