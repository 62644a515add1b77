"""In half precision the chunked form is as close to the float64 truth as plain torch in that precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.ops.chunked import linear_logprob_chunked
from holdfast.ops.reference import linear_logprob_reference

# Roundings made elsewhere than in plain torch may fall either way; over the seeds, by no more than this.
SLACK = 1.05
TOKENS, HIDDEN, VOCAB = 96, 64, 1000


def inputs(seed: int, certainty: float, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Inputs in `dtype`, targets and upstream; `certainty` leans the hidden states towards their targets."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(VOCAB, (TOKENS,), generator=draw)
    weight = torch.randn(VOCAB, HIDDEN, generator=draw) * 0.4
    hidden = torch.randn(TOKENS, HIDDEN, generator=draw) + certainty * weight[targets]
    leaves = {"hidden": hidden, "weight": weight, "bias": torch.randn(VOCAB, generator=draw)}
    return {n: t.to(dtype) for n, t in leaves.items()}, targets, torch.randn(TOKENS, generator=draw)


def outcome(
    form: Any, leaves: dict[str, Tensor], targets: Tensor, upstream: Tensor, **options: Any
) -> dict[str, Tensor]:
    """Log-probs and every gradient, in float64 for comparison."""
    leaves = {n: t.clone().requires_grad_() for n, t in leaves.items()}
    logprob = form(**leaves, targets=targets, **options)
    gradients = torch.autograd.grad(logprob, list(leaves.values()), upstream.to(logprob.dtype))
    return {n: t.detach().double() for n, t in [("logprob", logprob), *zip(leaves, gradients, strict=True)]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("certainty", [0.0, 1.0, 2.0])  # targets at a probability of 0.001, 0.25 and 0.9
@pytest.mark.parametrize("options", [{}, {"softcap": 20.0, "logit_scale": 0.7}], ids=str)
def test_error_bounded_by_plain_torch(
    dtype: torch.dtype, certainty: float, options: dict[str, float]
) -> None:
    squared = {"plain": dict.fromkeys(["logprob", "hidden", "weight", "bias"], 0.0)}
    squared["chunked"] = dict(squared["plain"])
    for seed in range(8):
        leaves, targets, upstream = inputs(seed, certainty, dtype)
        exact = {n: t.double() for n, t in leaves.items()}
        truth = outcome(linear_logprob_reference, exact, targets, upstream, **options)
        found = {
            "plain": outcome(linear_logprob_reference, leaves, targets, upstream, **options),
            "chunked": outcome(linear_logprob_chunked, leaves, targets, upstream, width=128, **options),
        }
        for form, name in [(form, name) for form in found for name in truth]:
            squared[form][name] += float((found[form][name] - truth[name]).square().sum())
    for name, plain in squared["plain"].items():
        assert plain > 0
        assert squared["chunked"][name] <= SLACK**2 * plain, name


@pytest.mark.parametrize("keep", [0, 1 << 20])
@pytest.mark.parametrize("certainty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("options", [{}, {"softcap": 20.0, "logit_scale": 0.7}], ids=str)
def test_error_bounded_by_plain_torch_under_autocast(
    certainty: float, options: dict[str, float], keep: int
) -> None:
    """float32 leaves, products in bfloat16: the weight's gradient is no worse for the exponentials being kept."""
    squared = {form: dict.fromkeys(["logprob", "hidden", "weight"], 0.0) for form in ("plain", "chunked")}

    def plain(**inputs: Tensor) -> Tensor:
        narrow = {n: t.bfloat16() if t.is_floating_point() else t for n, t in inputs.items()}
        return linear_logprob_reference(**narrow, **options)

    def chunked(**inputs: Tensor) -> Tensor:
        return linear_logprob_chunked(**inputs, **options, width=128, dtype=torch.bfloat16, keep=keep)

    for seed in range(8):
        leaves, targets, upstream = inputs(seed, certainty, torch.bfloat16)
        del leaves["bias"]
        exact = {n: t.double() for n, t in leaves.items()}
        truth = outcome(linear_logprob_reference, exact, targets, upstream, **options)
        single = {n: t.float() for n, t in leaves.items()}
        for form, run in (("plain", plain), ("chunked", chunked)):
            found = outcome(run, single, targets, upstream)
            for name in truth:
                squared[form][name] += float((found[name] - truth[name]).square().sum())
    for name, error in squared["plain"].items():
        assert squared["chunked"][name] <= SLACK**2 * error, name
