"""The sum of losses and its gradients, against autograd through the definition of `linear_logprob`."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from holdfast.objectives.registry import get_objective
from holdfast.ops.linear_objective import linear_objective
from holdfast.ops.reference import linear_logprob_reference

linear_objective_module = importlib.import_module("holdfast.ops.linear_objective")
NAMES = ("hidden", "weight", "bias")


def problem(tokens: int, size: int, vocab: int, dtype: Any = torch.float64, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(vocab, (tokens,), generator=generator)
    return {
        "hidden": draw(tokens, size),
        "weight": draw(vocab, size),
        "bias": draw(vocab),
        "targets": targets,
    }


def losses_of(name: str, **fields: Any) -> Any:
    objective: Any = get_objective(name, **fields)
    return lambda logps: torch.where(objective.kept(logps), objective(logps), 0.0)


LOSSES = {
    "nll": losses_of("nll"),
    "p": losses_of("p"),
    "f_alpha": losses_of("f_alpha", alpha=0.5),
    "threshold": losses_of("threshold", low=0.02),
    "focal": losses_of("focal"),
}


def by_definition(inputs: dict[str, Any], losses: Any, **options: Any) -> tuple[Tensor, Tensor]:
    logps = linear_logprob_reference(**inputs, **options)
    return losses(logps).sum(), logps


def gradients(total: Tensor, inputs: dict[str, Any], upstream: float = 1.0) -> dict[str, Tensor]:
    wanted = [name for name in NAMES if inputs[name] is not None and inputs[name].requires_grad]
    return dict(zip(wanted, torch.autograd.grad(total * upstream, [inputs[n] for n in wanted]), strict=True))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chunk", [1, 5, 13, 64])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 3.0}, {"logit_scale": 0.3}, {"softcap": 2.0, "logit_scale": 1.7}], ids=str
)
def test_equals_the_definition(name: str, chunk: int, options: dict[str, Any]) -> None:
    inputs = problem(13, 6, 50)
    total, logps = linear_objective(**inputs, losses=LOSSES[name], chunk=chunk, **options)
    expected, expected_logps = by_definition(inputs, LOSSES[name], **options)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logps, expected_logps.detach(), rtol=1e-12, atol=1e-12)
    assert not logps.requires_grad
    actual = gradients(total, inputs, upstream=-0.7)
    for key, value in gradients(expected, inputs, upstream=-0.7).items():
        torch.testing.assert_close(actual[key], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", [n for k in range(3) for n in itertools.combinations(NAMES, k)], ids=str)
def test_only_what_is_asked_for(frozen: tuple[str, ...]) -> None:
    inputs = problem(7, 4, 20)
    for name in frozen:
        inputs[name] = inputs[name].detach()
    total, _ = linear_objective(**inputs, losses=LOSSES["p"], chunk=3)
    actual = gradients(total, inputs)
    expected = gradients(by_definition(inputs, LOSSES["p"])[0], inputs)
    assert actual.keys() == expected.keys() == set(NAMES) - set(frozen)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-10, atol=1e-12)


def test_no_bias_no_tokens_no_gradient() -> None:
    inputs = problem(7, 4, 20) | {"bias": None}
    total, _ = linear_objective(**inputs, losses=LOSSES["nll"], chunk=3)
    torch.testing.assert_close(total, by_definition(inputs, LOSSES["nll"])[0])
    with torch.no_grad():
        assert not linear_objective(**inputs, losses=LOSSES["nll"])[0].requires_grad
    empty = problem(0, 4, 20)
    total, logps = linear_objective(**empty, losses=LOSSES["nll"])
    assert (total.item(), logps.shape) == (0.0, (0,))
    assert all(not value.any() for value in gradients(total, empty).values())


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    tokens=st.integers(0, 6),
    size=st.integers(1, 5),
    vocab=st.integers(1, 9),
    chunk=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_any_shape(tokens: int, size: int, vocab: int, chunk: int, seed: int) -> None:
    inputs = problem(tokens, size, vocab, seed=seed)
    total, _ = linear_objective(**inputs, losses=LOSSES["f_alpha"], chunk=chunk)
    expected, _ = by_definition(inputs, LOSSES["f_alpha"])
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-12)
    actual = gradients(total, inputs)
    for key, value in gradients(expected, inputs).items():
        torch.testing.assert_close(actual[key], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_extreme_logits_stay_finite(scale: float) -> None:
    inputs = problem(6, 4, 20, torch.float32)
    total, _ = linear_objective(**inputs, losses=LOSSES["p"], logit_scale=scale)
    assert torch.isfinite(total)
    assert all(torch.isfinite(value).all() for value in gradients(total, inputs).values())


def test_half_precision_is_no_worse_than_plain_torch() -> None:
    exact = problem(64, 32, 300)
    expected = gradients(by_definition(exact, LOSSES["nll"])[0], exact)
    half = {
        name: (value.detach().bfloat16().requires_grad_() if name in NAMES else value)
        for name, value in exact.items()
    }
    ours = gradients(linear_objective(**half, losses=LOSSES["nll"], chunk=16)[0], half)
    logits = half["hidden"] @ half["weight"].T + half["bias"]
    plain_total = torch.nn.functional.cross_entropy(logits.float(), half["targets"], reduction="sum")
    plain = gradients(plain_total, half)
    for name in NAMES:
        assert ours[name].dtype == torch.bfloat16
        error = (ours[name].double() - expected[name]).norm()
        assert error <= 1.1 * (plain[name].double() - expected[name]).norm()


class HalfTensors(TorchDispatchMode):
    """Elements of each new bfloat16 storage."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr(): tensor for tensor in known}
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.bfloat16:
            address = result.untyped_storage().data_ptr()
            if address not in self.known:
                self.known[address] = result  # kept, so that no other one gets its address
                self.sizes.append(result.untyped_storage().nbytes() // 2)
        return result


def test_half_precision_has_one_product_of_a_chunk_and_none_of_the_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradients by the logits take the place of the product, and the head's is added part by part."""
    monkeypatch.setattr(linear_objective_module, "ADDED", 1 << 10)
    inputs = problem(32, 16, 1 << 10, torch.bfloat16)
    with HalfTensors(*(inputs[name] for name in NAMES)) as made:
        linear_objective(**inputs, losses=LOSSES["nll"], chunk=32)
    assert sorted(made.sizes)[-1] == 32 << 10
    assert sorted(made.sizes)[-2] == 1 << 10  # a sixteenth of the head's


def test_a_second_backward_is_an_error() -> None:
    inputs = problem(4, 3, 9)
    total, _ = linear_objective(**inputs, losses=LOSSES["nll"])
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="spent once"):
        total.backward()
    total, _ = linear_objective(**inputs, losses=LOSSES["nll"])
    with pytest.raises(RuntimeError, match="spent once"):
        torch.autograd.grad(total, inputs["hidden"], create_graph=True)


def test_under_autocast_gradients_keep_what_float32_holds() -> None:
    """Products are bfloat16, sums over tokens are not, and neither is what reaches float32 weights."""
    inputs = problem(64, 32, 300, torch.float32)
    exact = {n: t.detach().double().requires_grad_() if n in NAMES else t for n, t in inputs.items()}
    expected = gradients(by_definition(exact, LOSSES["nll"])[0], exact)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(linear_objective(**inputs, losses=LOSSES["nll"], chunk=16)[0], inputs)
        logits = torch.nn.functional.linear(*(inputs[name] for name in NAMES))
        plain_total = torch.nn.functional.cross_entropy(logits.float(), inputs["targets"], reduction="sum")
        plain = gradients(plain_total, inputs)
    for name in NAMES:
        assert ours[name].dtype == torch.float32
        # a token's hidden state has its gradient from one product, the head from many tokens'
        assert torch.equal(ours[name], ours[name].bfloat16().float()) == (name == "hidden")
        error = (ours[name].double() - expected[name]).norm()
        assert error <= 1.05 * (plain[name].double() - expected[name]).norm()
