"""Attention over rows that share a prompt: its definition's values and gradients, in one step of the backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from holdfast.ops import attention_calls
from holdfast.ops import prefix_attention as module
from holdfast.ops.prefix_attention import (
    PrefixRow,
    compute_dtype,
    half_is_slower,
    prefix_attention,
    takes_prefix_attention,
    widens,
)

Lengths = list[tuple[int, int, int]]  # prompt, chosen, rejected
LENGTHS: Lengths = [(3, 2, 4), (1, 0, 0), (5, 0, 0), (2, 1, 1)]

needs_kernel = pytest.mark.skipif(not module._agrees(), reason="this torch has no such kernel for CPUs")


def rows_of(lengths: Lengths) -> list[PrefixRow]:
    sizes = [prompt + chosen for prompt, chosen, _ in lengths] + [rejected for *_, rejected in lengths]
    places = [slice(*ends) for ends in pairwise([0, *accumulate(sizes)])]
    return [
        PrefixRow(places[row], prompt, places[len(lengths) + row]) for row, (prompt, *_) in enumerate(lengths)
    ]


def mask_of(queries: int, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    back = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)[None, :]
    hidden = (back < 0) | (back >= (window or keys))
    return torch.zeros(queries, keys, dtype=dtype).masked_fill_(hidden, -torch.inf)


def attend(
    inputs: list[Tensor], lengths: Lengths, scale: float | None = None, window: int | None = None
) -> Tensor:
    query, key, value = inputs
    mask = partial(mask_of, dtype=compute_dtype(query.dtype))
    return prefix_attention(query, key, value, rows_of(lengths), mask, scale, window)


def definition(
    inputs: list[Tensor], lengths: Lengths, scale: float | None = None, window: int | None = None
) -> Tensor:
    """softmax(scale · q·k) v over what each token may see, written out."""
    query, key, value = inputs
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    tokens = query.shape[2]
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    place = torch.arange(tokens)
    for row in rows_of(lengths):
        start, own = row.causal.start, row.rejected
        seen[row.causal, row.causal] = True
        seen[own, start : start + row.prompt] = True
        seen[own, own] = True
        place[row.causal] -= start
        place[own] += row.prompt - own.start
    back = place[:, None] - place[None, :]
    seen &= (back >= 0) & (back < (window or tokens))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def problem(
    lengths: Lengths, heads: int = 4, groups: int = 2, size: int = 8, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Queries, keys and values as a decoder makes them: heads beside each other in a token's memory."""
    draw, tokens = torch.Generator().manual_seed(0), sum(map(sum, lengths))
    shapes = [(1, tokens, n, size) for n in (heads, heads // groups, heads // groups)]
    drawn = [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]
    return [x.transpose(1, 2).requires_grad_() for x in drawn]


def results(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    upstream = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for actual, value in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, value, rtol=tolerance, atol=tolerance)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of two to four queries."""
    monkeypatch.setattr(attention_calls, "BAND", 2)
    monkeypatch.setattr(attention_calls, "STRIPE", 4)
    monkeypatch.setattr(module, "CUT", 3)
    monkeypatch.setattr(module, "UNCUT", 4)


@needs_kernel
def test_by_hand() -> None:
    """Queries of zero weigh all they see alike: a prompt 1, a chosen token 2, rejected ones 4 and 7."""
    query, key = torch.zeros(1, 1, 4, 2), torch.randn(1, 1, 4, 2)
    value = torch.tensor([1.0, 2.0, 4.0, 7.0]).view(1, 1, 4, 1).expand(1, 1, 4, 2)
    found = attend([query, key, value], [(1, 1, 2)])
    assert found.shape == (1, 4, 1, 2)
    assert found[0, :, 0, 0].tolist() == [1.0, 1.5, 2.5, 4.0]
    assert attend([query, key, value], [(1, 1, 2)], window=2)[0, :, 0, 0].tolist() == [1.0, 1.5, 2.5, 5.5]


CASES = given(
    lengths=st.lists(
        st.tuples(st.integers(1, 7), st.integers(0, 7), st.integers(0, 9)), min_size=1, max_size=4
    ),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 3)]),
    size=st.integers(1, 9),
    scale=st.sampled_from([None, 0.3]),
    window=st.sampled_from([None, 1, 2, 3, 5, 9, 40]),
)


def check(
    lengths: Lengths, heads: tuple[int, int], size: int, scale: float | None, window: int | None
) -> None:
    inputs = problem(lengths, *heads, size)
    expected = results(definition(inputs, lengths, scale, window), inputs)
    assert_close(results(attend(inputs, lengths, scale, window), inputs), expected, 1e-12)


@needs_kernel
@settings(max_examples=40, deadline=None, derandomize=True)
@CASES
def test_equals_the_definition(**case: Any) -> None:
    check(**case)


@needs_kernel
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@CASES
def test_cut_into_calls_it_is_the_same(cut: None, **case: Any) -> None:
    check(**case)


@needs_kernel
@pytest.mark.parametrize("window", [None, 300, 700])
def test_long_parts(window: int | None) -> None:
    """Longer than the kernel's own blocks, of 256 queries and 512 keys, and cut or whole.

    Under the window of 700 the last queries see nothing of a call's first block.
    """
    lengths = [(400, 900, 1100), (200, 150, 300), (20, 30, 1)]
    inputs = problem(lengths, 2, 2, 4)
    expected = results(definition(inputs, lengths, None, window), inputs)
    assert_close(results(attend(inputs, lengths, None, window), inputs), expected, 1e-10)
    single = [x.detach().float().requires_grad_() for x in inputs]
    for found, value in zip(results(attend(single, lengths, None, window), single), expected, strict=True):
        assert (found - value).norm() <= 1e-5 * value.norm()


@needs_kernel
@pytest.mark.parametrize("window", [None, 3])
def test_gradients_are_finite_differences(window: int | None, cut: None) -> None:
    lengths = [(2, 1, 5), (1, 1, 0)]
    assert torch.autograd.gradcheck(
        lambda *inputs: attend(list(inputs), lengths, None, window), problem(lengths, 2, 2, 3)
    )


@needs_kernel
def test_memory_layout_does_not_matter() -> None:
    inputs = problem(LENGTHS)
    other = [x.detach().contiguous().requires_grad_() for x in inputs]
    assert other[0].stride() != inputs[0].stride()
    found, expected = (results(attend(given, LENGTHS), given) for given in (other, inputs))
    assert_close(found, expected, 1e-14)


@needs_kernel
def test_rows_of_too_few_tokens_are_an_error() -> None:
    """What lies in no part would have no value."""
    query, key, value = problem(LENGTHS)
    mask = partial(mask_of, dtype=torch.float64)
    with pytest.raises(ValueError, match="rows of 18 tokens were given for 19"):
        prefix_attention(query, key, value, rows_of([*LENGTHS[:-1], (2, 0, 1)]), mask)


@needs_kernel
def test_one_part_does_not_hear_of_another() -> None:
    """Whatever stands in a chosen part or in another row, a rejected part is the same to the last bit."""
    inputs = problem(LENGTHS)
    other = [x.detach().clone() for x in inputs]
    for x in other:
        x[:, :, 3:11] = 1e9  # the first row's chosen part and the two plain rows
        x.requires_grad_()
    found, changed = (results(attend(given, LENGTHS), given) for given in (inputs, other))
    rejected = slice(14, 18)
    assert torch.equal(found[0][:, rejected], changed[0][:, rejected])
    assert torch.equal(found[1][:, :, rejected], changed[1][:, :, rejected])


@needs_kernel
def test_large_scores_stay_finite() -> None:
    inputs = [(100 * x.detach()).requires_grad_() for x in problem(LENGTHS, dtype=torch.float32)]
    assert all(x.isfinite().all() for x in results(attend(inputs, LENGTHS), inputs))


@needs_kernel
def test_where_parts_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, bool]] = []
    original = module._attend

    def spy(query: Tensor, key: Tensor, *args: Any, is_causal: bool, **options: Any) -> Any:
        calls.append((query.shape[2], key.shape[2], is_causal))
        return original(query, key, *args, is_causal=is_causal, **options)

    monkeypatch.setattr(module, "_attend", spy)
    lengths = [(100, 156, 512), (100, 300, 513), (300, 340, 0)]
    attend(problem(lengths, 1, 1, 1, torch.float32), lengths)
    assert calls == [
        *[(256, 256, True), (512, 612, False)],
        *[(200, 200, True), (200, 400, False), (171, 271, False), (171, 442, False), (171, 613, False)],
        (640, 640, True),
    ]


# ---- half precision


@needs_kernel
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype, wide: bool, cut: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 only the result is rounded; both ways are exact to what half precision can say."""
    monkeypatch.setattr(module, "half_is_slower", lambda: wide)
    assert compute_dtype(dtype) == (torch.float32 if wide else dtype)
    lengths = [(40, 30, 50), (20, 9, 0)]
    inputs = problem(lengths, dtype=dtype)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    expected = results(definition(doubles, lengths), doubles)
    found = results(attend(inputs, lengths), inputs)
    unit = torch.finfo(dtype).eps
    for actual, value in zip(found, expected, strict=True):
        assert actual.dtype == dtype
        # norms and not elements: a gradient near zero is a difference of larger ones
        assert (actual - value).norm() <= (1 if wide else 4) * unit * value.norm()
    if wide:
        torch.testing.assert_close(found[0], expected[0].to(dtype), rtol=unit, atol=1e-6)


# ---- what is kept, and what is not done


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keeps_its_inputs_its_output_and_one_number_a_query_and_head(dtype: torch.dtype) -> None:
    inputs, kept = problem(LENGTHS, dtype=dtype), {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = attend(inputs, LENGTHS)
    numbers = sum(x.numel() for x in inputs) + output.numel()
    sums = output.numel() // output.shape[-1]
    assert sum(kept.values()) == numbers * dtype.itemsize + 4 * sums
    assert output.untyped_storage().data_ptr() in kept, "the output is kept a second time"
    assert output.is_contiguous()


@needs_kernel
def test_not_differentiable_again() -> None:
    inputs = problem(LENGTHS)
    with pytest.raises(RuntimeError, match="no derivative"):
        torch.autograd.grad(attend(inputs, LENGTHS).sum(), inputs, create_graph=True)


@needs_kernel
def test_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (x.detach() for x in problem(LENGTHS, dtype=torch.float32))
    assert takes_prefix_attention(query, key, value)
    assert not takes_prefix_attention(query.bfloat16(), key, value)
    assert not takes_prefix_attention(query, key, value[..., :4])
    assert not takes_prefix_attention(*(x.to("meta") for x in (query, key, value)))
    assert not takes_prefix_attention(*(x.int() for x in (query, key, value)))
    turned = (
        query.mT.contiguous().mT
    )  # a head's numbers do not lie side by side, which the kernel would not notice
    assert torch.equal(turned, query)
    assert not takes_prefix_attention(turned, key, value)
    with monkeypatch.context() as patched:
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not takes_prefix_attention(query, key, value)
    with sdpa_kernel(SDPBackend.MATH):
        assert not takes_prefix_attention(query, key, value)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    former = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(former)


@needs_kernel
@pytest.mark.parametrize(
    "surroundings",
    [
        torch.no_grad,
        torch.inference_mode,
        partial(torch.autocast, "cpu", dtype=torch.bfloat16),
        partial(default_dtype, torch.bfloat16),
    ],
    ids=["no_grad", "inference_mode", "autocast", "default dtype"],
)
def test_the_trial_does_not_depend_on_who_asks_first(surroundings: Any) -> None:
    with surroundings():
        assert module._agrees.__wrapped__()


@needs_kernel
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_trial_within_a_checkpointed_layer_leaves_no_trace(reentrant: bool) -> None:
    """It is made in the forward, and not again when the layer is computed anew."""
    inputs = problem(LENGTHS)
    expected = results(attend(inputs, LENGTHS), inputs)
    trials = []

    def layer(*given: Tensor) -> Tensor:
        if not trials:
            trials.append(module._agrees.__wrapped__())
        return attend(list(given), LENGTHS)

    output = checkpoint(layer, *inputs, use_reentrant=reentrant)
    upstream = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view(output.shape)
    output.backward(upstream)
    assert trials == [True]
    assert_close([output.detach(), *(x.grad for x in inputs)], expected, 0)


@needs_kernel
def test_what_is_kept_may_lie_elsewhere() -> None:
    inputs = problem(LENGTHS)
    expected = results(attend(inputs, LENGTHS), inputs)
    with torch.autograd.graph.save_on_cpu():
        output = attend(inputs, LENGTHS)
    assert_close(results(output, inputs), expected, 0)


def test_a_torch_that_knows_no_grouped_heads_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel would write beyond the gradients of keys and values."""
    monkeypatch.setattr(torch, "__version__", "2.8.1+cpu")
    monkeypatch.setattr(module, "_attend", lambda *given, **options: pytest.fail("the kernel was called"))
    assert not module._agrees.__wrapped__()


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_a_kernel_that_is_missing_or_wrong_is_not_taken(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module._attend

    def attend(*args: Any, **options: Any) -> Any:
        if fault == "missing":
            raise AttributeError("no such operator")
        output, sums = original(*args, **options)
        return 1.01 * output, sums

    monkeypatch.setattr(module, "_attend", attend)
    assert not module._agrees.__wrapped__()


@pytest.mark.parametrize(
    ("instructions", "units", "slower"),
    [("AVX512", False, True), ("AVX2", False, True), ("AVX512", True, False), ("SVE256", False, False)],
)
def test_where_half_precision_is_slower(
    instructions: str, units: bool, slower: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units)
    assert half_is_slower.__wrapped__() is slower


def test_a_torch_that_does_not_tell_of_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert half_is_slower.__wrapped__() is False


@pytest.mark.parametrize(
    ("dtype", "slower", "works", "flash", "expected"),
    [
        (torch.bfloat16, True, True, True, True),
        (torch.float16, True, True, True, True),
        (torch.float32, True, True, True, False),
        (torch.bfloat16, False, True, True, False),
        (torch.bfloat16, True, False, True, False),
        (torch.bfloat16, True, True, False, False),
    ],
)
def test_what_is_widened(
    dtype: torch.dtype,
    slower: bool,
    works: bool,
    flash: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "half_is_slower", lambda: slower)
    monkeypatch.setattr(module, "_agrees", lambda: works)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION if flash else SDPBackend.MATH):
        assert widens(dtype) is expected
