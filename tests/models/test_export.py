"""`final/` is what was trained, as a user would load it."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from holdfast.errors import ModelError
from holdfast.models import export
from holdfast.models.adapters import attach_adapter, lora_config, probe_logprobs
from holdfast.models.export import save_final
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model
from tests.models.test_adapters import trained_a_little

TOKENIZER = tiny_bpe_tokenizer(["hello world"], 300)


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_reloaded_logits_equal_the_trained_ones(tmp_path: Path, adapter: bool, tied: bool) -> None:
    model = tiny_model("qwen3", 300, tie_word_embeddings=tied)
    trained = trained_a_little(attach_adapter(model, lora_config(model, rank=4)) if adapter else model)
    expected = probe_logprobs(trained)
    exported = save_final(trained, TOKENIZER, tmp_path / "final", stop_token_ids=[2])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    # merging adds the adapter to each weight before the product instead of after it: rounding, and no more
    torch.testing.assert_close(probe_logprobs(loaded), expected, rtol=1e-4, atol=1e-5)
    assert abs(exported.drift) < 1e-5
    assert exported.dtype == "float32"
    assert loaded.generation_config.eos_token_id == 2  # the end of a turn, so that generation stops
    assert AutoTokenizer.from_pretrained(tmp_path / "final").chat_template == TOKENIZER.chat_template
    assert not list((tmp_path / "final").glob("*.bin"))
    assert not (tmp_path / "final.partial").exists()


def test_half_precision_drift_is_measured(tmp_path: Path) -> None:
    model = tiny_model("qwen3", 300)
    exported = save_final(trained_a_little(model), TOKENIZER, tmp_path / "final", dtype=torch.bfloat16)
    assert exported.dtype == "bfloat16"
    assert 0 < exported.drift < 0.1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "final").dtype == torch.bfloat16


def test_a_finished_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    with pytest.raises(ModelError, match="exists already"):
        save_final(tiny_model("llama", 300), TOKENIZER, tmp_path / "final")


@pytest.mark.parametrize("sampled", [True, False])
def test_settings_of_sampling_do_not_stop_a_save(sampled: bool, tmp_path: Path) -> None:
    """transformers loads a greedy model with a temperature, and refuses to save it once a stop token is added."""
    tiny_model("qwen3", 300).save_pretrained(tmp_path / "start")
    settings = {
        "temperature": 0.9,
        "top_p": 0.6,
        "do_sample": sampled,
        "eos_token_id": 1,
        "length_penalty": 2.0,
    }
    (tmp_path / "start" / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    save_final(model, TOKENIZER, tmp_path / "final", stop_token_ids=[2])
    found = json.loads((tmp_path / "final" / "generation_config.json").read_text(encoding="utf-8"))
    assert found["eos_token_id"] == [1, 2]
    assert ("temperature" in found, "top_p" in found) == (sampled, sampled)


def test_a_merge_that_peft_refuses_is_said_and_the_adapter_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attach_adapter(tiny_model("qwen3", 300), lora_config(tiny_model("qwen3", 300), rank=4))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("NaNs detected in the merged weights")

    monkeypatch.setattr(type(model), "merge_and_unload", refuse, raising=False)
    with pytest.raises(
        ModelError, match="cannot be merged: NaNs detected.*the adapter is kept in .*final.adapter"
    ):
        save_final(model, TOKENIZER, tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final.adapter"]


def test_an_interrupted_save_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_require_same", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_final(tiny_model("qwen3", 300), TOKENIZER, tmp_path / "final")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_never_published(tmp_path: Path) -> None:
    model = tiny_model("llama", 300)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(ModelError, match="training diverged.*lm_head.weight"):
        save_final(model, TOKENIZER, tmp_path / "final")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("largest", [1e5, 2e3])
def test_what_half_precision_cannot_hold_is_never_published(tmp_path: Path, largest: float) -> None:
    """Neither a weight beyond its range, nor weights whose products are."""
    model = tiny_model("llama", 300)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(largest)
        model.model.layers[0].mlp.gate_proj.weight.fill_(largest)
        model.model.layers[0].mlp.down_proj.weight.fill_(largest)
    with pytest.raises(ModelError, match="float16"):
        save_final(model, TOKENIZER, tmp_path / "final", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_an_adapter_outlives_a_failure_to_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: object) -> None:
        raise ModelError("the merged model diverges")

    monkeypatch.setattr(export, "merge_adapter", refuse)
    model = tiny_model("qwen3", 300)
    trained = trained_a_little(attach_adapter(model, lora_config(model, rank=4)))
    with pytest.raises(ModelError, match="the adapter is kept in"):
        save_final(trained, TOKENIZER, tmp_path / "final")
    assert (tmp_path / "final.adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "final").exists()


def test_a_disk_that_fills_up_leaves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the trained adapter stays."""

    def full(self: object, folder: Path, **options: object) -> None:
        (folder / "model-00001.safetensors").parent.mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    model = tiny_model("qwen3", 300)
    trained = trained_a_little(attach_adapter(model, lora_config(model, rank=4)))
    monkeypatch.setattr(type(model), "save_pretrained", full)
    with pytest.raises(
        ModelError, match="final' was not saved: No space left on device; the adapter is kept in"
    ):
        save_final(trained, TOKENIZER, tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final.adapter"]
