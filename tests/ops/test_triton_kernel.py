"""The Triton kernels give the definition's values and gradients: on a GPU, or in Triton's interpreter.

Triton chooses between the two when it is imported, by TRITON_INTERPRET. Without that variable the tests marked
`on_device` run on a GPU where there is one, and `test_in_the_interpreter` runs them on the CPU in a process of
its own; the others check what compiles and what is refused, for which no GPU is needed.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from holdfast.ops.chunked import linear_logprob_chunked
from holdfast.ops.linear_logprob import linear_logprob
from holdfast.ops.reference import linear_logprob_reference
from tests.ops.test_chunked_cost import Ledger

pytest.importorskip("triton", reason="needs the package triton")
kernel = importlib.import_module("holdfast.ops.triton_kernel")
linear_logprob_triton = kernel.linear_logprob_triton

DEVICE = "cpu" if kernel.INTERPRETED else "cuda"
on_device = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU, or TRITON_INTERPRET=1"
)
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
compiled = pytest.mark.skipif(kernel.INTERPRETED, reason="nothing compiles in the interpreter")

# The smallest: a few dozen tokens and entries then fill several tiles, slices and slabs.
SMALL = kernel.Blocks(tokens=16, vocab=16, hidden=16, step=16, warps=4, stages=3)


@pytest.fixture(autouse=True)
def interpreter_rounds_as_a_gpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the nearest bfloat16, ties to even; the interpreter cuts off."""
    if not kernel.INTERPRETED:
        return
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounding(data: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if source.is_fp32() and target.is_bf16():
            bits = data.view(np.uint32)
            bits = (bits + (0x7FFF + ((bits >> 16) & 1))) & 0xFFFF0000
            data = bits.astype(np.uint32).view(np.float32)
        return convert(data, source, target, mode)

    monkeypatch.setattr(interpreter, "_convert_float", rounding)


def problem(
    tokens: int,
    hidden: int,
    vocab: int,
    *,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Any]:
    """Random inputs whose logits spread over a few nats; leaves that want gradients."""
    draw = torch.Generator().manual_seed(seed)
    leaves = {
        "hidden": torch.randn(tokens, hidden, generator=draw),
        "weight": torch.randn(vocab, hidden, generator=draw),
        "bias": torch.randn(vocab, generator=draw) if bias else None,
    }
    targets = torch.randint(vocab, (tokens,), generator=draw)
    return placed({n: t if t is None else t.to(dtype) for n, t in leaves.items()}) | {
        "targets": targets.to(DEVICE)
    }


def placed(leaves: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
    """New leaves on the device under test; those of whole numbers stay without a gradient."""
    return {
        name: t
        if t is None
        else t.detach()
        .to(DEVICE, dtype if t.is_floating_point() else None)
        .requires_grad_(t.is_floating_point())
        for name, t in leaves.items()
    }


def outcome(
    form: Any, inputs: dict[str, Any], upstream: Tensor | None = None, **options: Any
) -> dict[str, Tensor]:
    """Log-probs, and the gradients of a weighted sum of them by every leaf that wants one."""
    logprob = form(**inputs, **options)
    if upstream is None:
        upstream = torch.linspace(-1, 2, len(logprob))
    leaves = {name: t for name, t in inputs.items() if t is not None and t.requires_grad}
    gradients = torch.autograd.grad(logprob, list(leaves.values()), upstream.to(logprob))
    return {"logprob": logprob.detach()} | dict(zip(leaves, gradients, strict=True))


def exact(inputs: dict[str, Any], upstream: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
    """The definition in float64, by the leaves that want a gradient of `inputs`."""
    double = {
        n: t.detach().double().requires_grad_(t.requires_grad) if t is not None and n != "targets" else t
        for n, t in inputs.items()
    }
    return outcome(linear_logprob_reference, double, upstream, **options)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest entry of each tensor."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        bound = tolerance * float(value.abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(
            actual[name].double(), value, atol=bound, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@compiled
@pytest.mark.slow
def test_in_the_interpreter() -> None:
    """Every test of this file that is marked `on_device`, on the CPU."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST_")} | {
        "TRITON_INTERPRET": "1"
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    child = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stdout + child.stderr
    passed = re.search(r"(\d+) passed", child.stdout)
    assert passed is not None
    assert int(passed[1]) > 40, child.stdout


SHAPES = [(1, 6, 50), (37, 40, 70), (33, 16, 16), (20, 3, 1)]  # tokens, hidden, vocab
OPTIONS = [{}, {"softcap": 3.0}, {"logit_scale": -2.0}, {"softcap": 3.0, "logit_scale": 0.25}]


@on_device
@pytest.mark.parametrize("blocks", [SMALL, None], ids=["small", "as chosen"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("bias", "options"), list(zip([False, True, False, True], OPTIONS, strict=True)), ids=str
)
def test_equals_the_definition(
    shape: tuple[int, int, int],
    bias: bool,
    options: dict[str, float],
    blocks: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "SLICES", 3)
    inputs = problem(*shape, bias=bias)
    actual = outcome(linear_logprob_triton, inputs, **options, blocks=blocks, width=32)
    assert {t.dtype for t in actual.values()} == {torch.float32}
    assert_same(actual, exact(inputs, **options))


@on_device
@pytest.mark.parametrize(
    "frozen", [names for n in range(4) for names in itertools.combinations(["hidden", "weight", "bias"], n)]
)
def test_frozen_inputs_get_no_gradient(frozen: tuple[str, ...]) -> None:
    inputs = problem(20, 6, 40, bias=True)
    for name in frozen:
        inputs[name] = inputs[name].detach()
    options = {"softcap": 3.0, "logit_scale": 0.5}
    if len(frozen) == 3:
        assert not linear_logprob_triton(**inputs, **options).requires_grad
        return
    assert_same(outcome(linear_logprob_triton, inputs, blocks=SMALL, **options), exact(inputs, **options))


@on_device
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    tokens=st.integers(0, 20),
    hidden=st.integers(1, 20),
    vocab=st.integers(1, 36),
    bias=st.booleans(),
    softcap=st.none() | st.floats(0.5, 20),
    logit_scale=st.floats(-4, 4),
    seed=st.integers(0, 2**31),
)
def test_equals_the_definition_at_any_shape(
    tokens: int, hidden: int, vocab: int, bias: bool, softcap: float | None, logit_scale: float, seed: int
) -> None:
    inputs = problem(tokens, hidden, vocab, bias=bias, seed=seed)
    options = {"softcap": softcap, "logit_scale": logit_scale}
    actual = outcome(linear_logprob_triton, inputs, **options, blocks=SMALL, width=16)
    # Differences of logits, each as large as the scale makes it.
    for name, value in exact(inputs, **options).items():
        torch.testing.assert_close(actual[name].double(), value, atol=2e-4, rtol=1e-5)
        assert actual[name].shape == value.shape


@on_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("certainty", "options"),  # targets at a probability of 0.001 and 0.9
    [(0.0, {}), (2.0, {"softcap": 20.0, "logit_scale": 0.7})],
    ids=["uncertain", "certain, capped"],
)
def test_half_precision_is_as_exact_as_plain_torch(
    dtype: torch.dtype, certainty: float, options: dict[str, float]
) -> None:
    tokens, hidden, vocab = 96, 64, 1000
    squared = {
        form: dict.fromkeys(["logprob", "hidden", "weight", "bias"], 0.0) for form in ("plain", "triton")
    }
    for seed in range(2):
        draw = torch.Generator().manual_seed(seed)
        targets = torch.randint(vocab, (tokens,), generator=draw)
        weight = torch.randn(vocab, hidden, generator=draw) * 0.4
        states = torch.randn(tokens, hidden, generator=draw) + certainty * weight[targets]
        leaves = {"hidden": states, "weight": weight, "bias": torch.randn(vocab, generator=draw)}
        inputs = placed(leaves, dtype) | {"targets": targets.to(DEVICE)}
        upstream = torch.randn(tokens, generator=draw)
        truth = exact(inputs, upstream, **options)
        for form, function in [("plain", linear_logprob_reference), ("triton", linear_logprob_triton)]:
            for name, found in outcome(function, inputs, upstream, **options).items():
                assert found.dtype == (torch.float32 if name == "logprob" else dtype)
                squared[form][name] += float((found.double() - truth[name]).square().sum())
    for name, plain in squared["plain"].items():
        assert squared["triton"][name] <= 1.05**2 * plain, name


@on_device
def test_negligible_tiles_are_left_out_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """48 tokens and 256 entries, whose probability falls with the entry: by tiles of 16, near the threshold."""
    tokens, vocab = 48, 256
    draw = torch.Generator().manual_seed(0)
    leaves = {
        "hidden": 1 + torch.rand(tokens, 4, generator=draw),
        "weight": -torch.linspace(0, 6, vocab)[:, None].expand(vocab, 4)
        + torch.randn(vocab, 4, generator=draw) * 0.1,
    }
    targets = torch.randint(16, (tokens,), generator=draw)
    targets[20] = vocab - 1
    upstream = torch.randn(tokens, generator=draw)
    upstream[32:] = 0.0  # the last tile's tokens have no weight in the loss
    upstream[5] = 0.0  # nor has this one, to which every entry is as probable
    leaves["hidden"][5] = 0.0
    inputs = placed(leaves, torch.bfloat16) | {"targets": targets.to(DEVICE)}
    inputs["weight"] = inputs["weight"].detach()
    active: list[Tensor] = []
    in_order = kernel._in_order
    monkeypatch.setattr(kernel, "_in_order", lambda tiles: active.append(tiles.cpu()) or in_order(tiles))
    actual = outcome(linear_logprob_triton, inputs, upstream, blocks=SMALL)
    found = active[0].bool()

    logits = (inputs["hidden"].double() @ inputs["weight"].double().t()).detach().cpu()
    mass = logits.softmax(1).view(tokens, 16, 16).sum(2)  # of each token in each tile's entries
    allowed = torch.finfo(torch.bfloat16).eps / 8
    share = allowed / 16
    mass[upstream == 0] = 0
    heaviest = mass.view(3, 16, 16).amax(1)
    assert found[0].tolist() == (heaviest[0] >= share).tolist()
    assert found[1].tolist() == [*(heaviest[1, :-1] >= share).tolist(), True]  # the last holds a target
    assert not found[2].any()
    assert 3 < int(found[0].sum()) < 13
    dropped = mass[:16, ~found[0]].sum(1)
    assert 0 < float(dropped.max()) < allowed

    monkeypatch.setattr(kernel, "SKIPPED", 0.0)
    whole = outcome(linear_logprob_triton, inputs, upstream, blocks=SMALL)
    assert active[1].bool()[:2].all()
    assert not active[1].bool()[2].any()
    difference = (actual["hidden"] - whole["hidden"]).abs().amax(1).double().cpu()
    rounding = torch.finfo(torch.bfloat16).eps * whole["hidden"].abs().amax(1).double().cpu()
    assert float(difference.max()) > 0
    assert (difference <= upstream.abs() * allowed * float(leaves["weight"].abs().max()) + rounding).all()


@on_device
def test_float32_leaves_nothing_out() -> None:
    """Probabilities of e^-40 still reach the gradient by their rows of the weight."""
    inputs = {
        "hidden": torch.ones(1, 1),
        "weight": -torch.linspace(0, 40, 64)[:, None],
        "bias": torch.zeros(64),
    }
    inputs = placed(inputs) | {"targets": torch.tensor([0], device=DEVICE)}
    actual, expected = (
        outcome(linear_logprob_triton, inputs, torch.ones(1), blocks=SMALL),
        exact(inputs, torch.ones(1)),
    )
    for name in ("weight", "bias"):
        torch.testing.assert_close(actual[name].double(), expected[name], atol=0, rtol=1e-4)


@on_device
def test_a_token_without_weight_in_the_loss_moves_nothing() -> None:
    inputs = problem(40, 3, 20)
    upstream = torch.ones(40)
    upstream[1::2] = 0
    actual = outcome(linear_logprob_triton, inputs, upstream, blocks=SMALL)
    assert (actual["hidden"][1::2] == 0).all()
    assert_same(actual, exact(inputs, upstream))


@on_device
def test_memory_layout_does_not_matter() -> None:
    inputs = problem(20, 6, 50, bias=True)
    strided = {
        "hidden": inputs["hidden"].detach().t().contiguous().t().requires_grad_(),
        "weight": inputs["weight"].detach().repeat_interleave(2, dim=1)[:, ::2].requires_grad_(),
        "bias": inputs["bias"].detach().repeat_interleave(3)[::3].requires_grad_(),
        "targets": inputs["targets"].repeat_interleave(2)[::2],
    }
    assert not any(t.is_contiguous() for t in strided.values())
    assert_same(outcome(linear_logprob_triton, strided, blocks=SMALL), exact(inputs))
    upstream = torch.ones((), device=DEVICE).expand(20)  # as a sum sends back
    assert_same(outcome(linear_logprob_triton, strided, upstream, blocks=SMALL), exact(inputs, upstream))


@on_device
def test_equal_inputs_give_equal_bits() -> None:
    inputs = problem(40, 20, 70, bias=True, dtype=torch.bfloat16)
    first, second = (outcome(linear_logprob_triton, inputs, blocks=SMALL, width=32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@on_device
def test_logits_of_ten_thousand() -> None:
    """exp(1e4) overflows; close calls among large logits must still be told apart."""
    logits = torch.tensor([[-1e4, -9999.0, -9998.0, -1e4, -9998.5], [1e4, 9999.0, -1e4, 0.0, 9998.5]])
    leaves = placed({"hidden": torch.eye(2), "weight": logits.t().repeat_interleave(15, 0).contiguous()})
    inputs = leaves | {"targets": torch.tensor([45, 15], device=DEVICE)}
    actual, expected = outcome(linear_logprob_triton, inputs, blocks=SMALL), exact(inputs)
    # By the hidden states: differences of rows of 1e4, good to 3e-6 of that.
    torch.testing.assert_close(actual.pop("hidden").double(), expected.pop("hidden"), atol=3e-2, rtol=0)
    assert_same(actual, expected, 1e-6)


@on_device
def test_a_cap_far_away_changes_nothing() -> None:
    """The hyperbolic tangent of small numbers keeps their digits."""
    inputs = problem(20, 6, 40)
    assert_same(outcome(linear_logprob_triton, inputs, softcap=1e4, blocks=SMALL), exact(inputs), 2e-6)


@on_device
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_entries_ruled_out_by_the_bias(softcap: float | None) -> None:
    """A bias of -inf, over whole tiles and from the first, leaves a softmax over the rest; a cap brings it back."""
    inputs = problem(6, 3, 50, bias=True)
    with torch.no_grad():
        inputs["bias"][:40] = -torch.inf
        inputs["targets"] = inputs["targets"] % 10 + 40
    options = {"softcap": softcap}
    assert_same(outcome(linear_logprob_triton, inputs, blocks=SMALL, **options), exact(inputs, **options))


@on_device
def test_a_target_outside_the_vocabulary_is_not_a_number() -> None:
    inputs = problem(4, 3, 40)
    inputs["targets"] = torch.tensor([-100, 39, 40, 47], device=DEVICE)  # 47: still in the last tile
    with torch.no_grad():
        logprob = linear_logprob_triton(**inputs, blocks=SMALL)
    assert logprob.isnan().tolist() == [True, False, True, True]


@on_device
def test_gradients_are_not_differentiable_again() -> None:
    """Neither where upstream depends on the inputs, nor where it is a constant."""
    inputs = problem(4, 3, 7)
    for loss in (torch.sum, torch.var):
        with pytest.raises(RuntimeError, match="implementation='reference'"):
            torch.autograd.grad(loss(linear_logprob_triton(**inputs)), inputs["hidden"], create_graph=True)


@on_device
def test_no_tensor_grows_with_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a frozen head. A trained one adds its gradient."""
    monkeypatch.setattr(kernel, "SLICES", 2)
    largest = []
    for vocab in (64, 128):
        inputs = problem(32, 2, vocab)
        inputs["weight"] = inputs["weight"].detach()
        with Ledger(*(t for t in inputs.values() if t is not None)) as ledger:
            outcome(linear_logprob_triton, inputs, blocks=SMALL, width=32)
        largest.append(ledger.largest)
    assert largest[0] == largest[1]
    assert largest[0] <= 4 * 32 * 32  # the slab; the interpreter looks at it by bytes


@on_device
def test_through_the_public_entry() -> None:
    """Autocast, options and bias arrive; the parameters' gradients stay float32."""
    inputs = problem(20, 6, 50, bias=True)
    options = {"softcap": 3.0, "logit_scale": 0.5}
    actual = outcome(linear_logprob, inputs, implementation="triton", **options)
    assert_same(actual, exact(inputs, **options))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        mixed = outcome(linear_logprob, inputs, implementation="triton", **options)
    assert {t.dtype for t in mixed.values()} == {torch.float32}
    assert_same(mixed, {n: t.double() for n, t in actual.items()}, 0.05)
    assert (mixed["logprob"] - actual["logprob"]).abs().max() > 1e-4


@on_gpu
@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{}, {"softcap": 20.0, "logit_scale": 0.7}], ids=str)
def test_as_exact_as_plain_torch_at_a_head_s_size(dtype: torch.dtype, options: dict[str, float]) -> None:
    draw = torch.Generator("cuda").manual_seed(0)
    tokens, hidden, vocab = 1000, 1152, 50_001
    targets = torch.randint(vocab, (tokens,), generator=draw, device="cuda")
    weight = torch.randn(vocab, hidden, generator=draw, device="cuda") / hidden**0.5
    states = torch.randn(tokens, hidden, generator=draw, device="cuda") + 8 * weight[targets]
    inputs = placed({"hidden": states, "weight": weight, "targets": targets}, dtype)
    truth = exact(inputs, **options)
    plain = outcome(linear_logprob_reference, inputs, **options)
    for name, found in outcome(linear_logprob_triton, inputs, **options, width=20_000).items():
        error, bar = ((t[name].double() - truth[name]).norm() for t in ({name: found}, plain))
        assert error <= 1.05 * bar + 1e-5 * truth[name].norm(), name


@on_gpu
@compiled
def test_memory_on_a_gpu_is_flat_in_the_vocabulary_and_nothing_waits() -> None:
    peaks = []
    for vocab in (1 << 17, 1 << 18):
        hidden = torch.randn(4096, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(vocab, 256, device="cuda", dtype=torch.bfloat16)
        targets = torch.randint(vocab, (4096,), device="cuda")
        linear_logprob(hidden, weight, targets).sum().backward()  # compiles
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.cuda.set_sync_debug_mode("error")
        try:
            linear_logprob(hidden, weight, targets).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        peaks.append(torch.cuda.max_memory_allocated() - before)
        assert peaks[-1] < 4096 * vocab * 2  # whole logits in bfloat16
    assert peaks[1] < 1.05 * peaks[0]


class Launches:
    """Stands in for a kernel: keeps what it is launched with, and runs nothing."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int]) -> Any:
        assert grid[0] > 0
        return lambda *arguments, **options: self.calls.append((arguments, options))


KERNELS = ["_forward_kernel", "_coefficient_kernel", "_hidden_kernel", "_weight_kernel"]


def launches(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, *, bias: bool, **options: Any
) -> dict[str, Any]:
    """By kernel, the first launch of a forward and a backward; on the CPU, where none of them could run."""
    stand_ins = {name: Launches() for name in KERNELS}
    inputs = {"hidden": torch.zeros(300, 200), "weight": torch.zeros(1000, 200)}
    inputs |= {"bias": torch.zeros(1000)} if bias else {}
    leaves = {name: t.to(dtype).requires_grad_() for name, t in inputs.items()}
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "INTERPRETED", True)
        for name, stand_in in stand_ins.items():
            patch.setattr(kernel, name, stand_in)
        linear_logprob_triton(**leaves, targets=torch.zeros(300).long(), **options).sum().backward()
    return {name: stand_in.calls[0] for name, stand_in in stand_ins.items()}


@compiled
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "capability", "memory", "softcap", "bias"),
    [
        (torch.bfloat16, 90, 227 * 1024, None, False),  # H100
        (torch.float16, 80, 163 * 1024, 30.0, True),  # A100
        (torch.float32, 86, 99 * 1024, None, True),
    ],
)
def test_what_is_launched_compiles(
    dtype: torch.dtype,
    capability: int,
    memory: int,
    softcap: float | None,
    bias: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To machine code for a GPU that need not be here, within its shared memory."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as build
    from triton.runtime.jit import mangle_type

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    blocks = kernel.blocks_for(dtype, memory, capped=softcap is not None)
    found = launches(monkeypatch, dtype, bias=bias, softcap=softcap, blocks=blocks)
    for name, (arguments, options) in found.items():
        function = getattr(kernel, name)
        given = dict(zip(function.arg_names, arguments, strict=False)) | options
        signature, constants, facts = {}, {}, {}
        for index, parameter in enumerate(function.params):
            value = given.pop(parameter.name)
            if parameter.is_constexpr or value is None:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            signature[parameter.name] = mangle_type(value)
            place = value.data_ptr() if isinstance(value, Tensor) else value
            if isinstance(place, int) and not parameter.do_not_specialize and place % 16 == 0:
                facts[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(function, signature, constants, facts)
        result = build(source, target=GPUTarget("cuda", capability, 32), options=given)
        assert result.asm["cubin"]
        assert result.metadata.shared <= memory, name
        assert result.metadata.num_warps == blocks.warps


@compiled
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"need a CUDA GPU, and the tensors are on cpu: use implementation='auto'.*TRITON_INTERPRET=1"),
        ({"weight": torch.zeros(11, 4, device="meta")}, r"one device, got cpu, meta"),
        (
            {"hidden": torch.zeros(5, 4).double(), "weight": torch.zeros(11, 4).double()},
            r"got torch\.float64",
        ),
    ],
    ids=["device", "devices", "dtype"],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    inputs = {"hidden": torch.zeros(5, 4), "weight": torch.zeros(11, 4), "targets": torch.zeros(5).long()}
    with pytest.raises(ValueError, match=message):
        linear_logprob_triton(**inputs | change)


@compiled
@pytest.mark.parametrize(
    ("device", "dtype", "runs", "agrees", "form"),
    [
        ("cpu", torch.float32, True, True, "chunked"),
        ("cuda", torch.float32, True, True, "triton"),
        ("cuda", torch.bfloat16, True, True, "triton"),
        ("cuda", torch.bfloat16, True, False, "chunked"),
        ("cuda", torch.float64, True, True, "chunked"),
        ("cuda", torch.bfloat16, False, True, "chunked"),
    ],
)
def test_auto_takes_the_kernels_on_a_gpu_that_they_compile_for(
    device: str, dtype: torch.dtype, runs: bool, agrees: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = importlib.import_module("holdfast.ops.linear_logprob")
    monkeypatch.setattr(entry, "_triton_runs", lambda _: runs)
    monkeypatch.setattr(entry, "agrees", lambda *_: agrees)

    assert entry.implementation_for(torch.device(device), dtype, 1 << 30) == form


@compiled
@pytest.mark.parametrize("installed", [True, False])
def test_triton_is_imported_at_its_first_use_and_may_be_absent(installed: bool) -> None:
    hide = "" if installed else "sys.meta_path = [*map(Hidden, sys.meta_path)]"
    code = f"""
import sys, torch

class Hidden:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.split(".")[0] == "triton" else self.finder.find_spec(name, *rest)
    def __getattr__(self, name): return getattr(self.finder, name)

{hide}
from holdfast.ops import linear_logprob
inputs = torch.zeros(5, 4), torch.zeros(11, 4), torch.zeros(5).long()
print(linear_logprob(*inputs).sum().item())
assert "holdfast.ops.triton_kernel" not in sys.modules
try:
    linear_logprob(*inputs, implementation="triton")
except ValueError as error:
    print(error)
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert ("need a CUDA GPU" if installed else "pip install triton") in child.stdout
    assert child.stdout.startswith("-11.989")


def test_smaller_tiles_for_smaller_gpus_and_none_that_do_not_fit() -> None:
    for dtype, memory, capped in itertools.product(
        [torch.float32, torch.bfloat16], [99 * 1024, 163 * 1024, 227 * 1024], [False, True]
    ):
        blocks = kernel.blocks_for(dtype, memory, capped=capped)
        sizes = [blocks.tokens, blocks.vocab, blocks.hidden, blocks.step]
        assert all(size >= 16 and size & (size - 1) == 0 for size in sizes)
        assert all(size % blocks.step == 0 for size in sizes)
        assert (blocks.tokens + blocks.vocab) * blocks.step * dtype.itemsize * blocks.stages <= memory
    wide = kernel.blocks_for(torch.bfloat16, 227 * 1024, capped=False)
    assert wide.vocab > kernel.blocks_for(torch.bfloat16, 163 * 1024, capped=False).vocab


@on_device
def test_agrees_with_the_chunked_form() -> None:
    inputs = problem(40, 20, 70, bias=True)
    expected = {n: t.double() for n, t in outcome(linear_logprob_chunked, inputs).items()}
    assert_same(outcome(linear_logprob_triton, inputs, blocks=SMALL), expected)
