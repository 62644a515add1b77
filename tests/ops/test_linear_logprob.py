"""The public entry: which implementation runs, in which dtype, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import holdfast
from holdfast.ops import linear_logprob as public
from holdfast.ops import linear_logprob_reference
from holdfast.ops.chunked import linear_logprob_chunked
from holdfast.ops.linear_logprob import WHOLE_LOGITS, agrees, linear_logprob

IMPLEMENTATIONS = ["auto", "reference", "chunked"]


def inputs(
    tokens: int = 5, hidden: int = 4, vocab: int = 11, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    return {
        "hidden": torch.randn(tokens, hidden, generator=draw).to(dtype).requires_grad_(),
        "weight": torch.randn(vocab, hidden, generator=draw).to(dtype).requires_grad_(),
        "bias": torch.randn(vocab, generator=draw).to(dtype).requires_grad_(),
        "targets": torch.randint(vocab, (tokens,), generator=draw),
    }


def gradients(logprob: Tensor, leaves: dict[str, Any]) -> list[Tensor]:
    return list(torch.autograd.grad(logprob.sum(), [leaves[n] for n in ("hidden", "weight", "bias")]))


def test_the_public_name() -> None:
    assert holdfast.linear_logprob is public is linear_logprob


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_options_reach_every_implementation(implementation: Any) -> None:
    leaves = inputs(dtype=torch.float64)
    options = {"softcap": 2.0, "logit_scale": 0.5}
    logprob = linear_logprob(**leaves, **options, implementation=implementation)
    expected = linear_logprob_reference(**leaves, **options)
    torch.testing.assert_close(logprob, expected, atol=1e-13, rtol=0)
    for found, wanted in zip(gradients(logprob, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-13, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("tokens", [0, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_log_probs_are_float32_or_better(dtype: torch.dtype, tokens: int, implementation: Any) -> None:
    leaves = inputs(tokens, dtype=dtype)
    logprob = linear_logprob(**leaves, implementation=implementation)
    assert logprob.shape == (tokens,)
    assert logprob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert {g.dtype for g in gradients(logprob, leaves)} == {dtype}


def test_auto_forms_small_logits_whole_and_no_others() -> None:
    """The two forms differ by where their gradients come from, and agree on both sides of the border."""
    vocab = WHOLE_LOGITS // 4
    for tokens, form in [(4, "GatherBackward0"), (5, "_ChunkedLogprobBackward")]:
        leaves = inputs(tokens, hidden=2, vocab=vocab)
        logprob = linear_logprob(**leaves)
        node = logprob.grad_fn.next_functions[0][0] if tokens == 4 else logprob.grad_fn  # past a squeeze
        assert node.name() == form
        torch.testing.assert_close(logprob, linear_logprob_reference(**leaves), atol=1e-5, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mixed", [False, True], ids=["float32 hidden", "bfloat16 hidden"])
def test_autocast_casts_as_linear_does(implementation: Any, mixed: bool) -> None:
    """The parameters stay float32 and so do their gradients; only the product is taken in bfloat16."""
    leaves = inputs(64, 16, 300)
    if mixed:
        leaves["hidden"] = leaves["hidden"].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = F.linear(leaves["hidden"], leaves["weight"], leaves["bias"])
        assert logits.dtype == torch.bfloat16
        expected = logits.float().log_softmax(-1).gather(1, leaves["targets"][:, None]).squeeze(1)
        logprob = linear_logprob(**leaves, implementation=implementation)
        found, wanted = gradients(logprob, leaves), gradients(expected, leaves)
    torch.testing.assert_close(logprob, expected, atol=1e-5, rtol=0)
    for actual, target in zip(found, wanted, strict=True):
        assert actual.dtype == target.dtype
        torch.testing.assert_close(actual, target, atol=0.01 * float(target.abs().max()), rtol=0)
    if not mixed:
        assert (linear_logprob(**leaves) - logprob).abs().max() > 1e-4  # without autocast it is not rounded


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast_leaves_float64_alone(implementation: Any) -> None:
    leaves = inputs(dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprob = linear_logprob(**leaves, implementation=implementation)
        found = gradients(logprob, leaves)
    expected = linear_logprob_reference(**leaves)
    torch.testing.assert_close(logprob, expected, atol=1e-13, rtol=0)
    for actual, target in zip(found, gradients(expected, leaves), strict=True):
        torch.testing.assert_close(actual, target, atol=1e-13, rtol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(2, 5, 4)}, ValueError, r"\(2, 5, 4\) and \(11, 4\)"),
        ({"hidden": torch.zeros(5, 3)}, ValueError, r"\(5, 3\) and \(11, 4\)"),
        ({"weight": torch.zeros(4)}, ValueError, r"\(5, 4\) and \(4,\)"),
        ({"targets": torch.zeros(4).long()}, ValueError, r"targets must be \(5,\), .* got \(4,\)"),
        ({"targets": torch.zeros(5, 1).long()}, ValueError, r"targets must be \(5,\), .* got \(5, 1\)"),
        ({"targets": torch.zeros(5).int()}, ValueError, r"int64, got torch\.int32"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must be \(11,\), .* got \(4,\)"),
        ({"weight": torch.zeros(11, 4).bfloat16()}, ValueError, r"float32 but weight is torch\.bfloat16"),
        ({"bias": torch.zeros(11).double()}, ValueError, r"float32 but bias is torch\.float64"),
        ({"hidden": torch.zeros(5, 4).long()}, ValueError, r"floating point, got torch\.int64"),
        ({"softcap": 0.0}, ValueError, r"softcap must be positive.* got 0\.0"),
        ({"softcap": -30.0}, ValueError, r"softcap must be positive.* got -30\.0"),
        ({"softcap": float("nan")}, ValueError, r"softcap must be positive.* got nan"),
        ({"targets": torch.tensor([0, 1, 11, 2, 3])}, IndexError, r"target 11 is outside .* of 11"),
        ({"targets": torch.tensor([0, 1, -100, 2, 3])}, IndexError, r"target -100 is outside .* of 11"),
        ({"implementation": "chunkd"}, ValueError, r"'chunkd' \(did you mean 'chunked'\?\)"),
    ],
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_refusals(implementation: str, change: dict, error: type[Exception], message: str) -> None:
    arguments = {**inputs(), "implementation": implementation, **change}
    with pytest.raises(error, match=message):
        linear_logprob(**arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_kernel_is_held_against_the_definition_before_it_is_used(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> Tensor:
        return linear_logprob_chunked(hidden[:, :64], weight[:, :64], targets, **options)

    def fails(*inputs: Tensor, **options: Any) -> Tensor:
        raise OSError("no compiler")

    device = torch.device("cpu")
    with torch.inference_mode():
        assert agrees(linear_logprob_chunked, device, dtype)
    assert caplog.text == ""
    assert not agrees(wrong, device, dtype)
    assert "is off by" in caplog.text
    assert not agrees(fails, device, dtype)
    assert "no compiler" in caplog.text
