"""Leaner layers: the same values and gradients, fewer tensors kept, and nothing taken over that computes otherwise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, OlmoConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from holdfast.models import lean_layers
from holdfast.models.lean_layers import install_lean_layers
from holdfast.models.tiny import tiny_model
from holdfast.ops import linear

from .conftest import FAMILIES, VOCAB, Float64Throughout

IDS = torch.randint(VOCAB, (2, 11), generator=torch.Generator().manual_seed(0))
# RMS norms a layer, besides the last one of the model
NORMS = {"llama": 2, "qwen3": 4, "gemma2": 4, "gemma3": 6}


def taken(model: nn.Module) -> list[str]:
    """Norms and MLPs; projections are taken wherever they are."""
    return [
        type(m).__name__ for m in model.modules() if "forward" in m.__dict__ and not isinstance(m, nn.Linear)
    ]


def pair_of(family: str, **options: Any) -> tuple[Any, Any]:
    """A model as it is, and its copy with lean layers; norm weights are not what they start from."""
    plain: Any = tiny_model(family, VOCAB, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter))
    lean = copy.deepcopy(plain)
    install_lean_layers(lean.get_decoder())
    return plain, lean


def loss_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


# Float64Throughout does not reach what is computed again in the backward: Gemma 2's softmax would be float32 there.
@pytest.mark.parametrize(
    ("family", "checkpointed"),
    [(family, again) for family in FAMILIES for again in (False, True) if not (again and family == "gemma2")],
)
def test_the_same_loss_and_gradients(family: str, checkpointed: bool) -> None:
    with Float64Throughout():
        plain, lean = pair_of(family, dtype=torch.float64)
        if checkpointed:
            lean.gradient_checkpointing_enable({"use_reentrant": False})
        expected, gradients = loss_and_gradients(plain)
        loss, found = loss_and_gradients(lean)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_and_mlp_is_taken(family: str) -> None:
    _, lean = pair_of(family)
    names = taken(lean)
    assert sum(name.endswith("MLP") for name in names) == 2
    assert sum(name.endswith("RMSNorm") for name in names) == 2 * NORMS[family] + 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast_within_its_rounding(family: str, weights: torch.dtype) -> None:
    plain, lean = pair_of(family, dtype=weights)
    for parameter in (*plain.parameters(), *lean.parameters()):
        parameter.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        expected, gradients = loss_and_gradients(plain)
        loss, found = loss_and_gradients(lean)
    assert abs(loss - expected) < 2e-3 * expected
    for name, gradient in gradients.items():
        off = (found[name] - gradient).float().norm() / gradient.float().norm()
        assert off < 0.03, name


def test_attention_and_mlp_share_one_cast_of_their_input() -> None:
    _, lean = pair_of("qwen3")
    seen: dict[str, int] = {}
    for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
        module = next(m for n, m in lean.named_modules() if n.endswith(name))
        module.register_forward_pre_hook(lambda m, args, n=name: seen.update({n: args[0].data_ptr()}))
    with torch.autocast("cpu", torch.bfloat16):
        lean(input_ids=IDS, use_cache=False)
    assert seen["q_proj"] == seen["k_proj"] == seen["v_proj"]
    assert seen["gate_proj"] == seen["up_proj"]


def kept_bytes(model: Any, autocast: bool) -> int:
    """Of distinct tensors that wait for the backward, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, or another could take its place
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, autocast),
    ):
        model.get_decoder()(input_ids=IDS.repeat(4, 8), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("autocast", [False, True])
def test_less_is_kept(autocast: bool) -> None:
    plain, lean = pair_of("llama")
    assert kept_bytes(lean, autocast) < 0.82 * kept_bytes(plain, autocast)


def test_a_copy_computes_with_its_own_weights() -> None:
    _, lean = pair_of("llama")
    other = copy.deepcopy(lean)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert (other(input_ids=IDS).logits == 0).all()
    assert (lean(input_ids=IDS).logits != 0).any()


class OtherNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * hidden_states / hidden_states.abs().mean(-1, keepdim=True)


class OtherMLP(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))


def test_what_computes_otherwise_stays_as_it_is() -> None:
    """In each model one class of transformers is replaced by one of the same name and attributes."""
    for kind, other in ((LlamaRMSNorm, OtherNorm), (LlamaMLP, OtherMLP)):
        model: Any = tiny_model("llama", VOCAB)
        other.forward.__module__ = kind.__module__  # as if transformers had it
        changed = [m for m in model.modules() if type(m) is kind]
        for module in changed:
            module.__class__ = other
        before = model(input_ids=IDS).logits
        install_lean_layers(model.get_decoder())
        assert changed
        assert not any("forward" in m.__dict__ for m in changed)
        torch.testing.assert_close(model(input_ids=IDS).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not linear._agrees(), reason="this torch has no oneDNN product")
@pytest.mark.parametrize("family", FAMILIES)
def test_projections_by_onednn(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is the faster one: every projection of every layer, forward and back, and the same results."""
    products: list[int] = []
    own = linear._product

    def product(*given: Any) -> Tensor:
        products.append(1)
        return own(*given)

    monkeypatch.setattr(lean_layers, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear, "FEWEST", 0)
    monkeypatch.setattr(linear, "_product", product)
    plain, lean = pair_of(family)
    expected, gradients = loss_and_gradients(plain)
    loss, found = loss_and_gradients(lean)
    projections = sum(isinstance(m, nn.Linear) for m in lean.get_decoder().modules())
    assert len(products) == 2 * projections
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_projections_are_left_alone_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_layers, "onednn_is_faster", lambda: False)
    _, lean = pair_of("llama")
    assert not any("forward" in m.__dict__ for m in lean.modules() if isinstance(m, nn.Linear))


def test_a_layer_norm_is_none_of_ours() -> None:
    config = OlmoConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    install_lean_layers(model.get_decoder())
    assert taken(model) == ["OlmoMLP"]


def test_what_another_library_has_taken_over_stays_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model("llama", VOCAB)
    norm = model.get_decoder().norm
    norm.forward = theirs = lambda hidden_states: hidden_states
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: self.up_proj(x))
    install_lean_layers(model.get_decoder())
    assert norm.forward is theirs
    assert "LlamaMLP" not in taken(model)
    assert taken(model).count("LlamaRMSNorm") == 2 * NORMS["llama"] + 1


@pytest.mark.parametrize(("kind", "widens"), [(LlamaRMSNorm, True), (Gemma3RMSNorm, False)])
def test_the_dtype_of_a_norm_is_its_own(kind: Any, widens: bool) -> None:
    """Llama's norm hands on a float32 weight's precision, Gemma's that of the states."""
    holder = nn.ModuleList([kind(8)])
    states = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = holder[0](states)
    install_lean_layers(holder)
    assert taken(holder) == [kind.__name__]
    after = holder[0](states)
    assert after.dtype == before.dtype == (torch.float32 if widens else torch.bfloat16)
    torch.testing.assert_close(after, before, rtol=2**-8, atol=0)
