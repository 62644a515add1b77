"""Float32 products by another library: values and gradients of `F.linear`, and everything else left to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from holdfast.ops import linear as module
from holdfast.ops.linear import linear, onednn_is_faster

needs_onednn = pytest.mark.skipif(not module._agrees(), reason="this torch has no oneDNN product")


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """oneDNN for every size, on whatever processor; the shapes it multiplied."""
    calls: list[tuple[int, ...]] = []
    own = module._product

    def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append(tuple(x.shape))
        return own(x, weight, bias)

    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(module, "FEWEST", 0)
    monkeypatch.setattr(module, "_product", product)
    return calls


def draw(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(result: Tensor, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    return [result.detach(), *torch.autograd.grad(result, wanted, upstream.to(result))]


@needs_onednn
@pytest.mark.parametrize("trained", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)])
@pytest.mark.parametrize("leading", [(), (3,), (1, 5), (2, 1, 4), (0,), (1, 0)])
def test_equals_f_linear(by_onednn: list[Any], leading: tuple[int, ...], trained: tuple[int, ...]) -> None:
    sizes = ((*leading, 8), (6, 8), (6,))
    given = [draw(*size, seed=n) for n, size in enumerate(sizes)]
    x, weight, bias = (t.requires_grad_(bool(on)) for t, on in zip(given, trained, strict=True))
    upstream = draw(*leading, 6, seed=9)
    found = gradients(linear(x, weight, bias), [x, weight, bias], upstream)
    assert by_onednn == [tuple(x.shape)] + [tuple(upstream.shape)] * trained[0]
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in (x, weight, bias)]
    true = gradients(F.linear(*wide), wide, upstream)
    for own, exact in zip(found, true, strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own.double(), exact, rtol=1e-5, atol=1e-5)


@needs_onednn
@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.integers(0, 9), inputs=st.integers(1, 70), outputs=st.integers(1, 70), seed=st.integers(0, 99))
def test_any_shape(rows: int, inputs: int, outputs: int, seed: int) -> None:
    x, weight = draw(rows, inputs, seed=seed), draw(outputs, inputs, seed=seed + 1)
    exact = F.linear(x.double(), weight.double())
    torch.testing.assert_close(module._product(x, weight).double(), exact, rtol=1e-5, atol=1e-5)
    turned = module._product(x, weight.t().contiguous().t())
    torch.testing.assert_close(turned.double(), exact, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_strides_of_every_kind(by_onednn: list[Any]) -> None:
    """A slice, a transpose, and the upstream of a sum, which is one number with strides of zero."""
    x = draw(8, 10, seed=1).t()[:, 2:].requires_grad_()
    weight = draw(12, 6, seed=2)[::2].requires_grad_()
    found = torch.autograd.grad(linear(x, weight).sum(), (x, weight))
    expected = torch.autograd.grad(F.linear(x, weight).sum(), (x, weight))
    assert len(by_onednn) == 2
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_no_second_derivative(by_onednn: list[Any]) -> None:
    x, weight = draw(3, 4).requires_grad_(), draw(5, 4).requires_grad_()
    with pytest.raises(RuntimeError, match="no derivative"):
        torch.autograd.grad(linear(x, weight).sum(), x, create_graph=True)


@needs_onednn
def test_what_is_left_to_torch(by_onednn: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draw(3, 8), draw(5, 8)
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(linear(x.to(dtype), weight.to(dtype)), F.linear(x.to(dtype), weight.to(dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.mkldnn, "enabled", False)
        linear(x, weight)
    linear(x.to("meta"), weight.to("meta"))
    assert by_onednn == []
    linear(x, weight)
    assert by_onednn == [(3, 8)]


def test_a_small_product_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "onednn_is_faster", lambda: pytest.fail("asked for a product of 120"))
    linear(draw(3, 8), draw(5, 8))


@pytest.mark.parametrize(
    ("processor", "instructions", "works", "chosen"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True, True),
        ("vendor_id : AuthenticAMD", "AVX512", False, False),
        ("vendor_id : AuthenticAMD", "AVX2", True, False),
        ("vendor_id : GenuineIntel", "AVX512", True, False),
        (None, "AVX512", True, False),
    ],
)
def test_the_choice(
    processor: str | None,
    instructions: str,
    works: bool,
    chosen: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if processor is not None:
        (tmp_path / "cpuinfo").write_text(processor, encoding="utf-8")
    monkeypatch.setattr(module, "PROCESSORS", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch._C, "has_mkl", True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(module, "_agrees", lambda: works)
    onednn_is_faster.cache_clear()
    try:
        assert onednn_is_faster() is chosen
    finally:
        onednn_is_faster.cache_clear()


def test_a_product_that_is_off_or_missing_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*given: Any) -> Tensor:
        raise AttributeError("no such operator")

    for product in (missing, lambda x, weight, bias=None: F.linear(x, weight, bias) * 1.001):
        monkeypatch.setattr(module, "_product", product)
        assert not module._agrees()
