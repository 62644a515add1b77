"""Tokens that the model has no row for, weights that are not the configuration's, adapters of other models: errors with
the sizes. Rows that were added are saved, and load equal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from holdfast import PreferenceConfig, PreferenceTrainer, SFTConfig, SFTTrainer
from holdfast.errors import ModelError
from holdfast.models.tiny import tiny_model
from tests.faults.commands import copied, holdfast, losses_of, refuse_to_load_models, set_keys, stage

EMBEDDING, PROJECTION = "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"
LORA = ("adapter={rank: 2, alpha: 4}",)
LORA_ALONE = ("adapter={rank: 2, alpha: 4, train_head: false}",)
THINK = ["<think>", "</think>"]


def with_tokens(start: Path, folder: Path, **tokens: Any) -> Path:
    """A copy whose tokenizer has more tokens than its model."""
    tokenizer = AutoTokenizer.from_pretrained(copied(start, folder))
    tokenizer.add_special_tokens(tokens)
    tokenizer.save_pretrained(folder)
    return folder


def spoiled(start: Path, folder: Path, **changes: torch.Tensor | None) -> Path:
    """A copy with other weights; None takes one out."""
    weights = load_file(copied(start, folder) / "model.safetensors") | changes
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items() if tensor is not None},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


# ---- tokens without a row


@pytest.mark.parametrize(
    ("tokens", "largest"),
    [({"extra_special_tokens": THINK}, "321 ('</think>')"), ({"pad_token": "[PAD]"}, "320 ('[PAD]')")],
    ids=["added tokens", "a padding token"],
)
@pytest.mark.parametrize("settings", [(), LORA], ids=["full", "lora"])
def test_tokens_that_the_model_has_no_row_for(
    start: Path, rows: Path, tmp_path: Path, tokens: dict[str, Any], largest: str, settings: tuple[str, ...]
) -> None:
    """Even where no row uses them: whoever writes one to the trained model would stop it."""
    folder = with_tokens(start, tmp_path / "model", **tokens)
    for ended in (
        stage("align", folder, rows, tmp_path / "run", *settings),
        stage("sft", start, rows, tmp_path / "run", *settings, f"model.tokenizer={folder}"),
        holdfast("check", rows, "--model", folder),
    ):
        assert ended.code == 2
        assert f"has tokens up to number {largest}, but the model's vocabulary has 320 rows" in ended.error
        assert "resize_token_embeddings(" in ended.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("trainer_class", "config_class"), [(PreferenceTrainer, PreferenceConfig), (SFTTrainer, SFTConfig)]
)
def test_the_trainers_say_the_same_of_a_loaded_model(
    trainer_class: Any, config_class: Any, start: Path, rows: Path, tmp_path: Path
) -> None:
    folder = with_tokens(start, tmp_path / "model", extra_special_tokens=THINK)
    args = config_class(output_dir=str(tmp_path / "run"), use_cpu=True, dataset_num_proc=1)
    with pytest.raises(ModelError, match=r"up to number 321 .*vocabulary has 320 rows"):
        trainer_class(
            model=AutoModelForCausalLM.from_pretrained(start),
            args=args,
            train_dataset=str(rows),
            processing_class=str(folder),
            peft_config={"rank": 2},
        )


def test_a_model_of_another_vocabulary(start: Path, rows: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_model("llama", 100, hidden_size=32).save_pretrained(other)
    ended = stage("align", other, rows, tmp_path / "run", f"model.tokenizer={start}")
    assert ended.code == 2
    assert "up to number 319" in ended.error
    assert "vocabulary has 100 rows" in ended.error


def test_padding_with_the_end_token_trains_the_end_token(start: Path, rows: Path, tmp_path: Path) -> None:
    """No fault: masks come from positions, so the one token that is both is trained where it ends a turn."""
    folder = copied(start, tmp_path / "model")
    set_keys(folder / "tokenizer_config.json", pad_token="<|im_end|>")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    own, other = (
        SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(start),
            args=SFTConfig(
                output_dir=str(tmp_path / "run"),
                use_cpu=True,
                padding_free=False,
                dataset_num_proc=1,
                max_length=64,
            ),
            train_dataset=str(rows),
            processing_class=str(name),
        )
        for name in (folder, start)
    )
    for row in own.prepared["train"].dataset:
        assert row["input_ids"][-1] == tokenizer.eos_token_id
        assert row["completion_mask"][-1]
    with torch.no_grad():
        losses = [
            trainer.compute_loss(
                trainer.model,
                (batch := trainer.data_collator([trainer.prepared["train"].dataset[n] for n in range(8)])),
                num_items_in_batch=trainer.count(batch),
            )
            for trainer in (own, other)
        ]
    torch.testing.assert_close(*losses, rtol=0, atol=0)


# ---- rows that were added


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        pytest.param("qwen3", (), id="tied-full"),
        pytest.param("llama", LORA, id="untied-lora and head"),
        pytest.param("qwen3", LORA_ALONE, id="tied-lora"),
        pytest.param("llama", (), id="untied-full", marks=pytest.mark.soak),
        pytest.param("qwen3", LORA, id="tied-lora and head", marks=pytest.mark.soak),
        pytest.param("llama", LORA_ALONE, id="untied-lora", marks=pytest.mark.soak),
    ],
)
def test_added_rows_are_saved_and_load_equal(
    family: str, settings: tuple[str, ...], start: Path, tmp_path: Path
) -> None:
    folder = with_tokens(start, tmp_path / "model", extra_special_tokens=THINK)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = tiny_model(family, 320, hidden_size=32, eos_token_id=tokenizer.eos_token_id)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    source = tmp_path / "rows.jsonl"
    answer = "<think>low</think>the tide is {}"
    pairs = [{"prompt": f"{n}?", "chosen": answer.format(n), "rejected": "no"} for n in range(8)]
    source.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    ended = stage("align", folder, source, tmp_path / "run", "learning_rate=1e-2", *settings)
    assert ended.code == 0, ended.error
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    assert saved.config.vocab_size == 322
    assert (
        saved.get_input_embeddings().weight.shape == saved.get_output_embeddings().weight.shape == (322, 32)
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "final").convert_tokens_to_ids(THINK) == [
        320,
        321,
    ]
    trained = "train_head: false" not in "".join(settings)
    head = saved.get_output_embeddings().weight
    assert torch.equal(head, model.get_output_embeddings().weight) != trained
    # what was saved is a start like any other, and loads as what was saved
    again = stage(
        "sft", tmp_path / "run" / "final", source, tmp_path / "again", "learning_rate=0", "weight_decay=0"
    )
    assert again.code == 0, again.error
    same = AutoModelForCausalLM.from_pretrained(tmp_path / "again" / "final").state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in saved.state_dict().items())


# ---- weights that are not the configuration's


def test_weights_of_other_sizes(start: Path, rows: Path, tmp_path: Path) -> None:
    weights = load_file(start / "model.safetensors")
    fewer = spoiled(start, tmp_path / "fewer", **{EMBEDDING: weights[EMBEDDING][:100]})
    ended = stage("align", fewer, rows, tmp_path / "run")
    assert ended.code == 2
    assert f"'{EMBEDDING}' is 100 x 32, and the configuration makes it 320 x 32" in ended.error
    narrow = spoiled(start, tmp_path / "narrow", **{PROJECTION: weights[PROJECTION][:5]})
    assert (
        f"'{PROJECTION}' is 5 x 32, and the configuration makes it 32 x 32"
        in stage("sft", narrow, rows, tmp_path / "other").error
    )


def test_weights_that_are_missing_are_not_made_up(start: Path, rows: Path, tmp_path: Path) -> None:
    """transformers would put random numbers in their place."""
    folder = spoiled(start, tmp_path / "model", **{PROJECTION: None})
    ended = stage("align", folder, rows, tmp_path / "run")
    assert ended.code == 2
    assert f"lacks weights of its model ({PROJECTION})" in ended.error
    unlike = copied(start, tmp_path / "unlike")
    save_file({"a": torch.zeros(2)}, unlike / "model.safetensors", metadata={"format": "pt"})
    assert (
        "says 2 layers, but the weights beside it are 1 tensors"
        in stage("align", unlike, rows, tmp_path / "other").error
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_not_trained(
    start: Path, rows: Path, tmp_path: Path, value: float
) -> None:
    weight = load_file(start / "model.safetensors")[PROJECTION]
    weight[3, 4] = value
    ended = stage("align", spoiled(start, tmp_path / "model", **{PROJECTION: weight}), rows, tmp_path / "run")
    assert ended.code == 2
    assert f"holds weights that are not finite ({PROJECTION})" in ended.error


def test_weights_that_the_model_has_no_place_for_are_said(
    start: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = spoiled(start, tmp_path / "model", **{"model.layers.0.extra": torch.zeros(3)})
    ended = stage("align", folder, rows, tmp_path / "run")
    assert ended.code == 0, ended.error
    assert any("no place for: model.layers.0.extra" in record.message for record in caplog.records)


# ---- adapters


def adapter_of(start: Path, folder: Path, **config: Any) -> Path:
    """A LoRA adapter on the start model, with its tokenizer."""
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(start), lora).save_pretrained(folder)
    AutoTokenizer.from_pretrained(start).save_pretrained(folder)
    set_keys(folder / "adapter_config.json", **config)
    return folder


@pytest.mark.parametrize("settings", [(), LORA], ids=["full", "lora"])
def test_an_adapter_is_no_model_to_start_from(
    start: Path, rows: Path, tmp_path: Path, settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be loaded with its base, trained to the end, and could not be saved."""
    folder = adapter_of(start, tmp_path / "adapter")
    asked = refuse_to_load_models(monkeypatch)
    ended = stage("align", folder, rows, tmp_path / "run", *settings)
    assert ended.code == 2
    assert f"'{folder}' is an adapter of rank 4 on the model '{start}', not a model" in ended.error
    assert f"{PROJECTION} is for 32 x 32" in ended.error
    assert "another model's" not in ended.error
    assert "`holdfast export ADAPTER OUTPUT`" in ended.error
    assert asked == []


def test_an_adapter_of_another_base_says_both_sizes(start: Path, rows: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_model("qwen3", 320, hidden_size=64).save_pretrained(base)
    folder = adapter_of(start, tmp_path / "adapter", base_model_name_or_path=str(base))
    ended = stage("align", folder, rows, tmp_path / "run")
    assert ended.code == 2
    assert f"'{PROJECTION}' is 64 x 64 in '{base}', and 32 x 32 in the adapter" in ended.error


def test_an_adapter_beside_a_model_is_not_put_on_it(start: Path, rows: Path, tmp_path: Path) -> None:
    folder = copied(start, tmp_path / "model")
    adapter_of(start, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").rename(folder / "adapter_config.json")
    ended = stage("align", folder, rows, tmp_path / "run")
    assert ended.code == 2
    assert "is an adapter of rank 4" in ended.error


def test_a_merged_adapter_is_a_model(start: Path, rows: Path, tmp_path: Path) -> None:
    """What the message says to do."""
    folder = adapter_of(start, tmp_path / "adapter")
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start), folder).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "merged")
    ended = stage("align", tmp_path / "merged", rows, tmp_path / "run")
    assert ended.code == 0, ended.error
    assert losses_of(tmp_path / "run")
