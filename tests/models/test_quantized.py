"""Weights in 4 and 8 bits: which ones, what they compute, and what becomes of them when they are saved."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from holdfast.errors import ConfigError, ModelError
from holdfast.models import export, quantized
from holdfast.models.adapters import (
    attach_adapter,
    divergence,
    is_tied,
    lora_config,
    merge_adapter,
    probe_logprobs,
)
from holdfast.models.export import save_final
from holdfast.models.loading import load_model
from holdfast.models.quantized import (
    QUANTIZATIONS,
    exact_products,
    is_quantized,
    keep_trainable,
    quantization_options,
    require_bitsandbytes,
)
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model
from holdfast.models.token_logprobs import check_logprob_forward, install_logprob_forward

needs_package = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (holdfast[quantized])"
)
FAMILIES = ["llama", "qwen3"]  # head of its own, head tied to the embeddings
IDS = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        tiny_model(family, 300).save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


def load(folder: Path, kind: str, dtype: str = "float32") -> Any:
    compute = getattr(torch, dtype)
    return load_model(str(folder), dtype=dtype, quantized=quantization_options(kind, compute, "cpu"))


def moved(model: Any) -> PeftModel:
    """The model under an adapter that has left its start, head and all: by the same steps whatever the weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = attach_adapter(model, lora_config(model, rank=4))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
    return adapted


def adapted(folder: Path, kind: str, dtype: str = "float32") -> PeftModel:
    return moved(load(folder, kind, dtype))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_the_nearest_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"quantization 'nf5' is unknown \(did you mean 'nf4'\?\)"):
        quantization_options("nf5", torch.float32, "cpu")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"quantization: nf4: needs the package bitsandbytes.*holdfast\[quantized\]"
    ):
        quantization_options("nf4", torch.float32, "cpu")
    with pytest.raises(ConfigError, match="optim: lion_8bit: needs the package bitsandbytes"):
        require_bitsandbytes("optim: lion_8bit")


def test_plain_weights_are_not_quantized() -> None:
    model = tiny_model("llama", 300)
    assert not is_quantized(model)
    before = dict(model.get_decoder().layers[0].mlp.__dict__)
    with exact_products(model):
        assert model.get_decoder().layers[0].mlp.__dict__ == before


@needs_package
@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_projections_are_quantized_and_nothing_else(folders: Any, family: str, kind: str) -> None:
    model = load(folders[family], kind, "bfloat16")
    assert is_quantized(model)
    assert is_tied(model) == (family == "qwen3")
    for name, parameter in model.named_parameters():
        inside = name.endswith("proj.weight")
        narrow = torch.int8 if kind == "int8" else torch.uint8
        assert parameter.dtype == (narrow if inside else torch.bfloat16), name
    assert type(model.get_output_embeddings()) is nn.Linear


@needs_package
@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_exact_products_are_those_of_the_plain_weights(folders: Any, kind: str) -> None:
    """Even where products are taken in bfloat16, or of inputs rounded to 8 bits, outside."""
    options = quantization_options(kind, torch.bfloat16, "cpu")
    model = load_model(str(folders["llama"]), dtype="float32", quantized=options)
    outside = logits(model)
    with exact_products(model):
        found = logits(model)
    assert torch.equal(logits(model), outside)
    assert (found - outside).abs().max() > 1e-4
    expected = logits(model.dequantize(torch.float32))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@needs_package
def test_exact_products_leave_the_adapter_in(folders: Any) -> None:
    """PEFT's layers show the quantized weight as theirs, and are none of those that are replaced."""
    model = adapted(folders["llama"], "nf4")
    with exact_products(model):
        found = logits(model)
        with model.disable_adapter():
            assert (logits(model) - found).abs().max() > 0.01
    torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=1e-5)


@needs_package
@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_lean_rows_are_granted(folders: Any, family: str, kind: str) -> None:
    """In bfloat16 the check could not tell rounding from a wrong mask; it looks past both kinds of rounding."""
    model = adapted(folders[family], kind, "bfloat16")
    install_logprob_forward(model)
    check = check_logprob_forward(model)
    assert (check.padding_free_refusal, check.shared_prefix_refusal) == ("", "")


@needs_package
@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_what_was_trained(
    folders: Any, family: str, kind: str, dtype: str, tmp_path: Path
) -> None:
    model = adapted(folders[family], kind, dtype)
    trained = probe_logprobs(model)
    exported = save_final(model, tiny_bpe_tokenizer(["hello"], 300), tmp_path / "final")
    assert exported.dtype == dtype
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert loaded.dtype == getattr(torch, dtype)
    assert not is_quantized(loaded)
    assert getattr(loaded.config, "quantization_config", None) is None
    assert is_tied(loaded) == (family == "qwen3")
    assert not (tmp_path / "final.adapter").exists()
    drift = divergence(trained, probe_logprobs(loaded))
    assert abs(drift - exported.drift) < 1e-4
    # The adapter on the weights as they were before quantization is another model.
    other = merge_adapter(moved(load_model(str(folders[family]), dtype=dtype)))
    assert drift < 0.2 * divergence(trained, probe_logprobs(other)) or kind == "int8"
    assert drift < 2e-3


@needs_package
def test_plain_weights_that_predict_otherwise_are_not_saved(
    folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "QUANTIZED_DRIFT", -1.0)
    model = adapted(folders["llama"], "nf4")
    with pytest.raises(ModelError, match=r"predicts otherwise.*adapter is kept in"):
        save_final(model, tiny_bpe_tokenizer(["hello"], 300), tmp_path / "final")
    assert (tmp_path / "final.adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "final").exists()


@needs_package
def test_too_little_memory_for_plain_weights_keeps_the_adapter(
    folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(export, "dequantized", full)
    with pytest.raises(ModelError, match=r"do not fit in memory as plain ones.*adapter is kept in"):
        save_final(adapted(folders["llama"], "nf4"), tiny_bpe_tokenizer(["hello"], 300), tmp_path / "final")


@needs_package
def test_without_an_adapter_there_is_nothing_to_save(folders: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing of it was trained"):
        save_final(load(folders["llama"], "nf4"), tiny_bpe_tokenizer(["hello"], 300), tmp_path / "final")


@needs_package
@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_gradients_pass_after_an_evaluation(folders: Any, kind: str) -> None:
    """On CPUs with bfloat16 instructions bitsandbytes packs the weights anew, and without a word they do not."""
    model = adapted(folders["llama"], kind)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    before = gradients()
    model.eval()
    logits(model)
    assert all(torch.equal(a, b) for a, b in zip(gradients(), before, strict=True))


def test_weights_that_were_packed_are_refused() -> None:
    layer: Any = nn.Linear(2, 2)
    weight: Any = type("Params4bit", (nn.Parameter,), {})(torch.zeros(2, 2), requires_grad=False)
    layer.weight = weight
    weight.quant_state = SimpleNamespace(packing_format_for_cpu=False)
    keep_trainable(layer)
    weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelError, match="load the model anew"):
        keep_trainable(layer)
