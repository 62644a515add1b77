"""What `holdfast export` makes is what was trained; what cannot be exported is refused, and nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from holdfast.errors import CheckpointError, ConfigError, ModelError
from holdfast.models.adapters import attach_adapter, is_tied, lora_config, probe_logprobs
from holdfast.models.tiny import tiny_model
from holdfast.training import exporting
from holdfast.training.exporting import export
from tests.faults.runs import shared_tokenizer, trainer_of

WEIGHTS = "adapter_model.safetensors"


def saved_base(folder: Path, dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
    """A tiny model's folder, with its tokenizer."""
    tokenizer = shared_tokenizer()
    model = tiny_model("qwen3", len(tokenizer), hidden_size=32, dtype=dtype, **overrides)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def saved_adapter(base: Path, folder: Path) -> torch.Tensor:
    """An adapter's folder as PEFT writes it, as if trained; returns what base and adapter predict."""
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = attach_adapter(model, lora_config(model, rank=4))
    draw = torch.Generator().manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
    adapted.save_pretrained(folder)
    return probe_logprobs(adapted)


def trained_checkpoint(folder: Path, base: Path | None, **changed: Any) -> tuple[Path, torch.Tensor]:
    """A run's last checkpoint, and what its model predicts; of a run with an adapter, on `base`."""
    trainer = trainer_of("slime", folder, lora=base is not None, max_steps=2, save_steps=2, **changed)
    if base is not None:  # a run loads its base by name, and that is what the adapter says of it
        trainer.model.peft_config["default"].base_model_name_or_path = str(base)
    trainer.train()
    return folder / "checkpoint-2", probe_logprobs(trainer.model)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The folder of the model that `trainer_of` trains."""
    tokenizer = shared_tokenizer()
    return saved_base(tmp_path / "base", attention_dropout=0.1, eos_token_id=tokenizer.eos_token_id)


def predicted(folder: Path) -> torch.Tensor:
    return probe_logprobs(AutoModelForCausalLM.from_pretrained(folder))


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_is_merged_into_the_base_that_it_names(tmp_path: Path, tied: bool) -> None:
    start = saved_base(tmp_path / "start", tie_word_embeddings=tied)
    expected = saved_adapter(start, tmp_path / "adapter")
    assert (predicted(start) - expected).abs().max() > 0.01, "training changed nothing"
    found = export(tmp_path / "adapter", tmp_path / "out", stop_tokens=["<|im_end|>"])
    torch.testing.assert_close(predicted(tmp_path / "out"), expected, rtol=1e-4, atol=1e-5)
    assert is_tied(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) is tied
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == shared_tokenizer().chat_template
    assert found.saved.dtype == "float32"
    assert found.stops == ("<|im_end|>",)
    assert "does not say which weights" in found.notes[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "out", "start"]


def test_a_float32_head_on_a_half_precision_base_is_not_rounded_before_it_is_merged(tmp_path: Path) -> None:
    start = saved_base(tmp_path / "start", dtype=torch.bfloat16)
    saved_adapter(start, tmp_path / "adapter")
    head = load_file(tmp_path / "adapter" / WEIGHTS)["base_model.model.lm_head.weight"]
    assert not torch.equal(head, head.bfloat16().float()), "the test could not see rounding"
    found = export(tmp_path / "adapter", tmp_path / "out", dtype="float32")
    assert found.saved.dtype == "float32"
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(weights.get("lm_head.weight", weights["model.embed_tokens.weight"]), head)


def test_a_file_wider_than_its_configuration_says_loses_nothing(tmp_path: Path) -> None:
    start = saved_base(tmp_path / "start")
    settings = json.loads((start / "config.json").read_text(encoding="utf-8"))
    (start / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}), encoding="utf-8")
    export(start, tmp_path / "out", dtype="float32")
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "out"))
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_on_a_matrix_that_is_used_twice_is_refused(tmp_path: Path, target: str) -> None:
    start = saved_base(tmp_path / "start", tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(start)
    get_peft_model(model, LoraConfig(target_modules=[target, "q_proj"], r=2)).save_pretrained(
        tmp_path / "adapter"
    )
    with pytest.raises(ModelError, match="a LoRA target, and embeddings and LM head are tied"):
        export(tmp_path / "adapter", tmp_path / "out")


def test_a_failure_leaves_nothing_beside_the_output(tmp_path: Path) -> None:
    """So that the same command with another dtype goes through: SOURCE has the adapter."""
    start = saved_base(tmp_path / "start")
    weights = load_file(start / "model.safetensors")
    weights["model.norm.weight"][0] = 1e6
    save_file(weights, start / "model.safetensors", metadata={"format": "pt"})
    saved_adapter(start, tmp_path / "adapter")
    with pytest.raises(ModelError, match="save in another dtype"):
        export(tmp_path / "adapter", tmp_path / "out", dtype="float16")
    export(tmp_path / "adapter", tmp_path / "out", dtype="float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "out", "start"]


def test_an_output_that_cannot_be_made_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = saved_base(tmp_path / "start")
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    monkeypatch.setattr(exporting, "load_model", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(ModelError, match="cannot be made: .*taken' is no folder"):
        export(start, tmp_path / "taken" / "out")


def test_a_checkpoint_of_an_adapter_goes_on_the_base_it_was_trained_on(tmp_path: Path, base: Path) -> None:
    checkpoint, expected = trained_checkpoint(tmp_path / "run", base)
    found = export(checkpoint, tmp_path / "out")
    torch.testing.assert_close(predicted(tmp_path / "out"), expected, rtol=1e-4, atol=1e-5)
    assert "whose weights are those it was trained on" in found.source
    assert "checkpoint 'checkpoint-2', every file as it was written" in found.source
    assert found.notes == ()


def test_a_base_is_loaded_in_the_dtype_that_the_run_loaded_it_in(tmp_path: Path) -> None:
    end = shared_tokenizer().eos_token_id
    base = saved_base(tmp_path / "base", dtype=torch.bfloat16, attention_dropout=0.1, eos_token_id=end)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(base)
    checkpoint, _ = trained_checkpoint(tmp_path / "run", base, model={"dtype": torch.bfloat16}, bf16=True)
    found = export(checkpoint, tmp_path / "out")
    assert "whose weights are those it was trained on" in found.source
    assert found.saved.dtype == "bfloat16"


def test_a_base_that_has_changed_is_refused(tmp_path: Path, base: Path) -> None:
    checkpoint, _ = trained_checkpoint(tmp_path / "run", base)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="does not have the weights that .* was trained on"):
        export(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_a_whole_model_is_a_model(tmp_path: Path) -> None:
    checkpoint, expected = trained_checkpoint(tmp_path / "run", None)
    found = export(checkpoint, tmp_path / "out", dtype="bfloat16")
    assert found.saved.dtype == "bfloat16"
    assert found.saved.drift > 0
    torch.testing.assert_close(predicted(tmp_path / "out").float(), expected, rtol=0.1, atol=0.1)
    assert not list((tmp_path / "out").glob("optimizer*"))


def test_a_damaged_checkpoint_is_refused_by_file(tmp_path: Path) -> None:
    checkpoint, _ = trained_checkpoint(tmp_path / "run", None)
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="model.safetensors"):
        export(checkpoint, tmp_path / "out")


def test_a_run_is_told_its_final_model_and_its_checkpoints(tmp_path: Path) -> None:
    saved_base(tmp_path / "run" / "final")
    (tmp_path / "run" / "align" / "checkpoint-20").mkdir(parents=True)
    with pytest.raises(ModelError, match="neither .*: give '.*run/final' or '.*align/checkpoint-20'"):
        export(tmp_path / "run", tmp_path / "out")


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    start = saved_base(tmp_path / "start")
    expected = saved_adapter(start, tmp_path / "out.adapter")
    with pytest.raises(ModelError, match="start' is there already"):
        export(start, start)
    with pytest.raises(ModelError, match="lies in SOURCE"):
        export(start, start / "out")
    # what a run's failed save has kept, given back to be merged, is neither written over nor deleted
    kept = (tmp_path / "out.adapter" / WEIGHTS).read_bytes()
    export(tmp_path / "out.adapter", tmp_path / "out")
    assert (tmp_path / "out.adapter" / WEIGHTS).read_bytes() == kept
    torch.testing.assert_close(predicted(tmp_path / "out"), expected, rtol=1e-4, atol=1e-5)
    (tmp_path / "other.partial").mkdir()
    with pytest.raises(ModelError, match="other.partial' is there, where"):
        export(start, tmp_path / "other")


def emptied(path: Path) -> None:
    """An adapter's file without one of its LoRA tensors, which PEFT would only warn of."""
    weights = load_file(path)
    del weights[max(weights)]
    save_file(weights, path, metadata={"format": "pt"})


def with_another(path: Path) -> None:
    """An adapter's file with a tensor that has no place."""
    save_file(load_file(path) | {"base_model.model.nowhere.weight": torch.ones(2)}, path)


@pytest.mark.parametrize(("change", "message"), [(emptied, "lacks '"), (with_another, "nowhere.weight'")])
def test_every_weight_of_an_adapter_must_have_its_place(tmp_path: Path, change: Any, message: str) -> None:
    saved_adapter(saved_base(tmp_path / "start"), tmp_path / "adapter")
    change(tmp_path / "adapter" / WEIGHTS)
    with pytest.raises(ModelError, match=message):
        export(tmp_path / "adapter", tmp_path / "out")


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    saved_adapter(saved_base(tmp_path / "start"), tmp_path / "adapter")
    other = tmp_path / "other"
    tiny_model("qwen3", len(shared_tokenizer()), hidden_size=64).save_pretrained(other)
    shared_tokenizer().save_pretrained(other)
    with pytest.raises(ModelError, match="does not fit on '.*other'"):
        export(tmp_path / "adapter", tmp_path / "out", base=str(other))


def changed(path: Path, **keys: Any) -> None:
    """A JSON file with other values."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"base_model_name_or_path": None}, "does not name a base: give it with --base"),
        ({"base_model_name_or_path": "./gone"}, "the base of .*'./gone'.*--base"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'; what is merged here is LoRA"),
        ({"megatron_config": {"a": 1}, "megatron_core": "this"}, "megatron_config"),
    ],
)
def test_adapters_that_cannot_be_merged(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    saved_adapter(saved_base(tmp_path / "start"), tmp_path / "adapter")
    changed(tmp_path / "adapter" / "adapter_config.json", **keys)
    with pytest.raises(ModelError, match=message):
        export(tmp_path / "adapter", tmp_path / "out")


def test_quantized_weights_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    start = saved_base(tmp_path / "start")
    saved_adapter(start, tmp_path / "adapter")
    changed(start / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    for source in (start, tmp_path / "adapter"):
        with pytest.raises(ModelError, match=r"start' are quantized \(gptq\)"):
            export(source, tmp_path / "out")


def test_weights_in_parts_and_pickles_are_refused(tmp_path: Path) -> None:
    parts = tmp_path / "checkpoint-5"
    (parts / "pytorch_model_fsdp_0").mkdir(parents=True)
    with pytest.raises(ModelError, match="in parts.*pytorch_model_fsdp_0.*merge-weights"):
        export(parts, tmp_path / "out")
    saved_adapter(saved_base(tmp_path / "start"), tmp_path / "adapter")
    (tmp_path / "adapter" / WEIGHTS).rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ModelError, match="never opened: adapter_model.bin"):
        export(tmp_path / "adapter", tmp_path / "out")


def test_settings_that_do_not_apply(tmp_path: Path) -> None:
    start = saved_base(tmp_path / "start")
    with pytest.raises(ConfigError, match="belong to an adapter"):
        export(start, tmp_path / "out", base="other/model")
    with pytest.raises(ConfigError, match=r"no token '<\|im_ende\|>'.*<\|im_end\|>"):
        export(start, tmp_path / "out", stop_tokens=["<|im_ende|>"])
    with pytest.raises(ConfigError, match="float99"):
        export(start, tmp_path / "out", dtype="float99")


def test_an_adapter_beside_a_model_is_ambiguous(tmp_path: Path) -> None:
    start = saved_base(tmp_path / "start")
    get_peft_model(
        AutoModelForCausalLM.from_pretrained(start), LoraConfig(r=2, target_modules=["q_proj"])
    ).save_pretrained(start)
    with pytest.raises(ModelError, match="an adapter .* and a model"):
        export(start, tmp_path / "out")
