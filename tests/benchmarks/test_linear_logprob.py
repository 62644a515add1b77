"""The forms of holdfast's own compute plain's sum, with plain's gradients."""

from __future__ import annotations

import pytest
import torch

import linear_logprob


@pytest.mark.parametrize("head", ["trained", "frozen"])
@pytest.mark.parametrize("form", ["chunked", "objective"])
def test_one_sum(form: str, head: str) -> None:
    case = {
        "tokens": 16,
        "hidden": 8,
        "vocab": 40,
        "dtype": "float32",
        "device": "cpu",
        "seed": 0,
        "head": head,
    }
    found = {}
    for name in ("plain", form):
        inputs = linear_logprob.inputs(case)
        value = linear_logprob.build(case | {"form": name}, *inputs)()
        wanted = [tensor for tensor in inputs[:2] if tensor.requires_grad]
        found[name] = [value.detach(), *torch.autograd.grad(value, wanted)]
    torch.testing.assert_close(found[form], found["plain"])
