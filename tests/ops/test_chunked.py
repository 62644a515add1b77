"""The chunked form gives the definition's values and gradients, for every kind of head."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from holdfast.ops.chunked import block_width, linear_logprob_chunked
from holdfast.ops.reference import linear_logprob_reference


def problem(
    tokens: int,
    hidden: int,
    vocab: int,
    *,
    bias: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Any]:
    """Random inputs whose logits spread over a few nats; leaves that want gradients."""
    draw = torch.Generator().manual_seed(seed)
    inputs: dict[str, Any] = {
        "hidden": torch.randn(tokens, hidden, generator=draw, dtype=torch.float64),
        "weight": torch.randn(vocab, hidden, generator=draw, dtype=torch.float64),
        "bias": torch.randn(vocab, generator=draw, dtype=torch.float64) if bias else None,
    }
    inputs = {name: t if t is None else t.to(dtype).requires_grad_() for name, t in inputs.items()}
    return inputs | {"targets": torch.randint(vocab, (tokens,), generator=draw)}


def value_and_gradients(form: Any, inputs: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """Log-probs, and the gradients of a weighted sum of them by every leaf that wants one."""
    logprob = form(**inputs, **options)
    upstream = torch.linspace(-1, 2, len(logprob), dtype=logprob.dtype)
    leaves = {name: t for name, t in inputs.items() if t is not None and t.requires_grad}
    gradients = torch.autograd.grad(logprob, list(leaves.values()), upstream)
    return {"logprob": logprob.detach()} | dict(zip(leaves, gradients, strict=True))


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Equal to `tolerance` of the largest entry of each tensor."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        bound = tolerance * float(value.abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(actual[name], value, atol=bound, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


HEADS = [
    {"bias": bias, "softcap": softcap, "logit_scale": scale}
    for bias, softcap, scale in itertools.product([False, True], [None, 3.0], [1.0, 0.25, -2.0])
]


@pytest.mark.parametrize(
    "width", [1, 7, 16, 50, 64], ids="width{}".format
)  # 50 entries: whole, uneven, too wide
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_equals_the_definition(head: dict[str, Any], width: int) -> None:
    inputs = problem(13, 6, 50, bias=head["bias"])
    options = {"softcap": head["softcap"], "logit_scale": head["logit_scale"]}
    assert_same(
        value_and_gradients(linear_logprob_chunked, inputs, width=width, **options),
        value_and_gradients(linear_logprob_reference, inputs, **options),
        1e-12,
    )


# Of blocks of 16 entries, 13 float64 tokens each: none, the first, three of four, all with the last and shorter one.
KEPT = [0, 13 * 16 * 8 + 1, 3 * 13 * 16 * 8 + 1, 1 << 20]


@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("head", [head | {"bias": None} for head in HEADS if not head["bias"]], ids=str)
@pytest.mark.parametrize("frozen_bias", [False, True])
def test_blocks_that_wait_for_the_backward_change_nothing(
    head: dict[str, Any], keep: int, frozen_bias: bool
) -> None:
    inputs = problem(13, 6, 50)
    inputs["targets"][:5] = 17  # one row of the weight, from five tokens
    inputs["targets"][5] = 49
    if frozen_bias:
        inputs["bias"] = torch.linspace(-2, 2, 50, dtype=torch.float64)
    options = {"softcap": head["softcap"], "logit_scale": head["logit_scale"]}
    assert_same(
        value_and_gradients(linear_logprob_chunked, inputs, width=16, keep=keep, **options),
        value_and_gradients(linear_logprob_reference, inputs, **options),
        1e-12,
    )


@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_few_tokens(tokens: int, softcap: float | None) -> None:
    inputs = problem(tokens, 6, 50, bias=True)
    actual = value_and_gradients(linear_logprob_chunked, inputs, width=16, softcap=softcap)
    assert_same(actual, value_and_gradients(linear_logprob_reference, inputs, softcap=softcap), 1e-12)
    assert actual["weight"].shape == (50, 6)


@pytest.mark.parametrize(
    "frozen", [names for n in range(4) for names in itertools.combinations(["hidden", "weight", "bias"], n)]
)
def test_frozen_inputs_get_no_gradient(frozen: tuple[str, ...]) -> None:
    inputs = problem(13, 6, 50, bias=True)
    for name in frozen:
        inputs[name] = inputs[name].detach()
    options = {"softcap": 3.0, "logit_scale": 0.5}
    if len(frozen) == 3:
        assert not linear_logprob_chunked(**inputs, width=16, **options).requires_grad
        return
    assert_same(
        value_and_gradients(linear_logprob_chunked, inputs, width=16, **options),
        value_and_gradients(linear_logprob_reference, inputs, **options),
        1e-12,
    )


def test_a_tied_weight_used_twice() -> None:
    """The weight embeds the inputs and scores two sets of targets; its three gradients add up."""

    def total(form: Any, weight: Tensor, ids: Tensor, **options: Any) -> Tensor:
        hidden = torch.tanh(weight[ids])
        first = form(hidden, weight, ids.roll(1), **options)
        second = form(hidden * 2, weight, ids.flip(0), **options)
        return (first + first * second).sum()

    weight = problem(1, 6, 50)["weight"]
    ids = torch.randint(50, (13,), generator=torch.Generator().manual_seed(0))
    (actual,) = torch.autograd.grad(total(linear_logprob_chunked, weight, ids, width=16), weight)
    (expected,) = torch.autograd.grad(total(linear_logprob_reference, weight, ids), weight)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-10)


def test_memory_layout_does_not_matter() -> None:
    inputs = problem(13, 6, 50, bias=True)
    strided = {
        "hidden": inputs["hidden"].detach().t().contiguous().t().requires_grad_(),
        "weight": inputs["weight"].detach().repeat_interleave(2, dim=1)[:, ::2].requires_grad_(),
        "bias": inputs["bias"].detach().repeat_interleave(3)[::3].requires_grad_(),
        "targets": inputs["targets"].repeat_interleave(2)[::2],
    }
    assert not any(t.is_contiguous() for t in strided.values())
    assert_same(
        value_and_gradients(linear_logprob_chunked, strided, width=16),
        value_and_gradients(linear_logprob_reference, inputs),
        1e-12,
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    tokens=st.integers(0, 6),
    hidden=st.integers(1, 5),
    vocab=st.integers(1, 9),
    width=st.integers(1, 10),
    bias=st.booleans(),
    softcap=st.none() | st.floats(0.5, 20),
    logit_scale=st.floats(-4, 4),
    keep=st.integers(0, 500),
    seed=st.integers(0, 2**31),
)
def test_equals_the_definition_at_any_shape(
    tokens: int,
    hidden: int,
    vocab: int,
    width: int,
    bias: bool,
    softcap: float | None,
    logit_scale: float,
    keep: int,
    seed: int,
) -> None:
    inputs = problem(tokens, hidden, vocab, bias=bias, seed=seed)
    options = {"softcap": softcap, "logit_scale": logit_scale}
    actual = value_and_gradients(linear_logprob_chunked, inputs, width=width, keep=keep, **options)
    expected = value_and_gradients(linear_logprob_reference, inputs, **options)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_are_finite_differences(softcap: float | None) -> None:
    inputs = problem(4, 3, 7, bias=True)

    def form(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_logprob_chunked(
            hidden, weight, inputs["targets"], bias=bias, softcap=softcap, logit_scale=0.7, width=3
        )

    assert torch.autograd.gradcheck(form, (inputs["hidden"], inputs["weight"], inputs["bias"]))


def test_gradients_are_not_differentiable_again() -> None:
    """Neither where upstream depends on the inputs, nor where it is a constant."""
    inputs = problem(4, 3, 7)
    for loss in (torch.sum, torch.var):
        with pytest.raises(RuntimeError, match="implementation='reference'"):
            torch.autograd.grad(loss(linear_logprob_chunked(**inputs)), inputs["hidden"], create_graph=True)


def test_a_token_without_weight_in_the_loss_moves_nothing() -> None:
    inputs = problem(4, 3, 7)
    counts = torch.tensor([1.0, 0.0, 1.0, 0.0]).double()
    actual = torch.autograd.grad(
        linear_logprob_chunked(**inputs, width=3), (inputs["hidden"], inputs["weight"]), counts
    )
    kept = {**inputs, "hidden": inputs["hidden"][::2], "targets": inputs["targets"][::2]}
    (d_weight,) = torch.autograd.grad(linear_logprob_reference(**kept).sum(), inputs["weight"])
    assert (actual[0][1::2] == 0).all()
    torch.testing.assert_close(actual[1], d_weight, atol=1e-12, rtol=0)


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_float32(softcap: float | None) -> None:
    inputs = problem(40, 32, 3000, bias=True)
    options = {"softcap": softcap, "logit_scale": 0.5}
    expected = value_and_gradients(linear_logprob_reference, inputs, **options)
    single = {n: t.detach().float().requires_grad_() if n != "targets" else t for n, t in inputs.items()}
    actual = value_and_gradients(linear_logprob_chunked, single, width=512, **options)
    assert {t.dtype for t in actual.values()} == {torch.float32}
    assert_same({n: t.double() for n, t in actual.items()}, expected, 1e-5)


@pytest.mark.parametrize("keep", [0, 1 << 20])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_logits_of_ten_thousand(width: int, keep: int) -> None:
    """exp(1e4) overflows every dtype; close calls among large logits must still be told apart."""
    logits = torch.tensor([[1e4, 9999.0, -1e4, 0.0, 9998.5], [-1e4, -9999.0, -9998.0, -1e4, -9998.5]])
    targets = torch.tensor([1, 3])
    weight = logits.t().contiguous().requires_grad_()  # (5, 2), with one hidden unit per token
    hidden = torch.eye(2, requires_grad=True)
    actual = value_and_gradients(
        linear_logprob_chunked,
        {"hidden": hidden, "weight": weight, "targets": targets},
        width=width,
        keep=keep,
    )
    exact = {"hidden": hidden.detach().double().requires_grad_(), "targets": targets}
    exact["weight"] = weight.detach().double().requires_grad_()
    expected = value_and_gradients(linear_logprob_reference, exact)
    assert all(t.isfinite().all() for t in actual.values())
    # By the hidden states: differences of rows of 1e4, good to 1e-6 of that.
    torch.testing.assert_close(actual.pop("hidden").double(), expected.pop("hidden"), atol=1e-2, rtol=0)
    assert_same({n: t.double() for n, t in actual.items()}, expected, 1e-6)


@pytest.mark.parametrize("frozen_bias", [False, True])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_entries_ruled_out_by_the_bias(width: int, frozen_bias: bool) -> None:
    """A bias of -inf, over whole blocks and from the first, leaves a softmax over the rest."""
    inputs = problem(6, 3, 8, bias=True)
    inputs["bias"].requires_grad_(not frozen_bias)
    with torch.no_grad():
        inputs["bias"][:4] = -torch.inf
        inputs["targets"] = inputs["targets"] % 4 + 4
    assert_same(
        value_and_gradients(linear_logprob_chunked, inputs, width=width),
        value_and_gradients(linear_logprob_reference, inputs),
        1e-12,
    )


def test_a_target_outside_the_vocabulary_is_not_a_number() -> None:
    inputs = problem(3, 3, 7)
    targets = torch.tensor([-100, 6, 7])
    with torch.no_grad():
        logprob = linear_logprob_chunked(inputs["hidden"], inputs["weight"], targets, width=3)
    assert logprob.isnan().tolist() == [True, False, True]


def test_block_width() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert block_width(1024, 1 << 18, cpu) == 1024  # a million logits
    assert block_width(1 << 20, 1 << 18, cpu) == 512  # never thinner
    assert block_width(16, 1000, cpu) == 1000  # never wider than the vocabulary
    assert block_width(0, 1 << 30, cpu) == 1 << 20
    assert block_width(1024, 1 << 18, gpu) > block_width(1024, 1 << 18, cpu)
    assert block_width(1030, 1 << 18, cpu) == 960  # rows that a product can write fast


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_the_same_code_on_a_gpu_never_waits_for_it(head: dict[str, Any]) -> None:
    inputs = problem(13, 6, 50, bias=head["bias"])
    options = {"softcap": head["softcap"], "logit_scale": head["logit_scale"]}
    expected = value_and_gradients(linear_logprob_reference, inputs, **options)
    leaves = {
        n: t if t is None else t.detach().cuda().requires_grad_(t.requires_grad) for n, t in inputs.items()
    }
    names = [n for n, t in leaves.items() if t is not None and t.requires_grad]
    upstream = torch.linspace(-1, 2, 13).double().cuda()
    linear_logprob_chunked(**leaves, width=16, **options)  # libraries load at first use
    torch.cuda.set_sync_debug_mode("error")
    try:
        logprob = linear_logprob_chunked(**leaves, width=16, **options)
        gradients = torch.autograd.grad(logprob, [leaves[n] for n in names], upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    actual = {"logprob": logprob.detach()} | dict(zip(names, gradients, strict=True))
    assert_same({n: t.cpu() for n, t in actual.items()}, expected, 1e-12)
