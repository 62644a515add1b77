"""Flattened rows through transformers' layers: exact, switched on for them alone, refused where not understood."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory
from transformers import MistralConfig, MistralForCausalLM, modeling_flash_attention_utils
from transformers.integrations import flex_attention as flex_integration

from holdfast.data.collate import Batch, PairCollator, SFTCollator
from holdfast.errors import ModelError
from holdfast.models import flat_attention as module
from holdfast.models import token_logprobs as logprobs
from holdfast.models.flat_attention import flat_attention
from holdfast.models.flat_rows import FlatRows
from holdfast.models.tiny import tiny_model
from holdfast.models.token_logprobs import (
    causal_lm_of,
    check_logprob_forward,
    install_logprob_forward,
    token_logprobs,
)
from holdfast.ops import attention_calls, prefix_attention
from tests.models.conftest import (
    FLAT_FAMILIES,
    LENGTHS,
    VOCAB,
    Float64Throughout,
    assert_same,
    build,
    examples,
    loss_and_gradients,
    per_pair,
)

Measured = tuple[Tensor, dict[str, Tensor]]


def batch_of(padding_free: bool, lengths: Any = LENGTHS, shared_prefix: bool | None = None) -> Batch:
    shared_prefix = padding_free if shared_prefix is None else shared_prefix
    return PairCollator(0, shared_prefix, padding_free)(examples(lengths))


def measure(model: nn.Module, batch: Batch) -> Measured:
    return loss_and_gradients(model, per_pair(token_logprobs(model, batch), batch))


@pytest.fixture(params=["ours", "torch"])
def kernel_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Calls of the kernel by `prefix_attention`, or by torch's function: queries, causality, the mask's size."""
    calls: list[tuple[Any, ...]] = []

    def spy(original: Any) -> Any:
        def call(query: Tensor, *args: Any, is_causal: bool, attn_mask: Tensor | None, **kwargs: Any) -> Any:
            calls.append((query.shape[2], is_causal, None if attn_mask is None else tuple(attn_mask.shape)))
            return original(query, *args, is_causal=is_causal, attn_mask=attn_mask, **kwargs)

        return call

    if request.param == "ours":
        assert prefix_attention._agrees()
        monkeypatch.setattr(prefix_attention, "_attend", spy(prefix_attention._attend))
    else:
        monkeypatch.setattr(module, "takes_prefix_attention", lambda *inputs: False)
        monkeypatch.setattr(F, "scaled_dot_product_attention", spy(F.scaled_dot_product_attention))
    return calls


# ---- exactness (in float64, and with LoRA: test_token_logprobs)


@pytest.mark.parametrize("family", FLAT_FAMILIES)
def test_float32(family: str) -> None:
    model = build(family).float()
    assert_same(measure(model, batch_of(True)), measure(model, batch_of(False)), 1e-5)


@pytest.mark.parametrize("family", FLAT_FAMILIES)
def test_half_precision_is_as_close_as_plain_rows_are(family: str) -> None:
    model = build(family).float()
    exact = measure(model, batch_of(False))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        errors = [(measure(model, batch_of(form))[0] - exact).abs() / exact.abs() for form in (False, True)]
    assert errors[1] <= 2 * errors[0] + 1e-2


def test_a_chosen_part_the_rejected_one_can_see_would_be_seen() -> None:
    with Float64Throughout():
        model, batch = build("llama"), batch_of(True, [(9, 5, 7)])
        right = token_logprobs(model, batch)
        (prompt, chosen, rejected), slots = batch["row_lengths"][0], batch["rejected_slots"][0]
        broken = token_logprobs(model, {**batch, "row_lengths": ((prompt + chosen, 0, rejected),)})
    assert (right[slots[1:]] - broken[slots[1:]]).abs().max() > 1e-6


def test_a_row_that_runs_into_the_next_would_be_seen() -> None:
    with Float64Throughout():
        model, batch = build("llama"), batch_of(True, [(5, 3, 1), (4, 2, 1)])
        right = token_logprobs(model, batch)
        merged = sum(prompt + chosen for prompt, chosen, _ in batch["row_lengths"])
        broken = token_logprobs(model, {**batch, "row_lengths": ((merged, 0, 0),)})
    second = batch["chosen_slots"][1, :2]
    assert (right[second] - broken[second]).abs().max() > 1e-6


@pytest.mark.parametrize("band", [2, 256])
@pytest.mark.parametrize("window", [1, 3, 6, 40])
def test_windows_of_every_layer_kind(
    window: int, band: int, kernel_calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral slides in all of its layers, Gemma 3 in some; 40 is wider than any row, 256 queries too."""
    monkeypatch.setattr(attention_calls, "BAND", band)
    config = MistralConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=window,
    )
    mistral = MistralForCausalLM(config).double()
    install_logprob_forward(mistral)
    for model in (mistral, build("gemma3", sliding_window=window)):
        with Float64Throughout():
            assert_same(measure(model, batch_of(True)), measure(model, batch_of(False)), 1e-10)


def test_no_mask_is_built_for_causal_parts(kernel_calls: list[tuple[Any, ...]]) -> None:
    """Every `[prompt | chosen]` goes to the kernel as causal; only rejected parts have a mask, of their own size."""
    model = build("llama", layers=1)
    token_logprobs(model, batch_of(True, [(9, 5, 7), (4, 1, 1)]))
    assert sorted(kernel_calls, key=str) == [(13, True, None), (4, True, None), (6, False, (6, 15))]


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "torch"])
def test_every_layer_and_row_shares_one_mask(
    ours: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their size is the square of a row's length: one of each kind is built, and none is kept beside it."""
    if not ours:
        monkeypatch.setattr(module, "takes_prefix_attention", lambda *inputs: False)
    family, options = ("llama", {}) if window is None else ("gemma3", {"sliding_window": window})
    model: Any = build(family, layers=3, **options).float()
    rows: list[FlatRows] = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["flat_rows"]), with_kwargs=True
    )
    kept = set()

    def pack(tensor: Tensor) -> Tensor:
        if tuple(tensor.shape[-2:]) in {(61, 90), (60, 100), (89, 119)}:
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logprobs(model, batch_of(True, [(29, 1, 62), (40, 1, 61), (30, 1, 90)]))
    masks = [mask for key, mask in rows[0]._built.items() if key[0] == "additive"]
    assert [mask.untyped_storage().nbytes() for mask in masks] == len(masks) * [89 * 119 * 4]
    assert len(masks) == (1 if window is None else 2)
    assert kept == (set() if ours else {mask.untyped_storage().data_ptr() for mask in masks})


@pytest.mark.parametrize("window", [None, 7])
def test_long_rejected_parts_are_cut_and_exact(
    window: int | None, kernel_calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mask has more queries than a call may have: memory grows with the length, not with its square."""
    monkeypatch.setattr(attention_calls, "STRIPE", 4)
    monkeypatch.setattr(attention_calls, "BAND", 2)
    monkeypatch.setattr(module, "STRIPE", 4)
    monkeypatch.setattr(prefix_attention, "CUT", 4)
    monkeypatch.setattr(prefix_attention, "UNCUT", 4)
    monkeypatch.setattr(prefix_attention, "WHOLE", 0)
    lengths = [(9, 5, 14), (3, 2, 6), (1, 1, 5)]
    model = build("llama") if window is None else build("gemma3", sliding_window=window)
    with Float64Throughout():
        found = measure(model, batch_of(True, lengths))
        masks = [mask for *_, mask in kernel_calls if mask is not None]
        assert_same(found, measure(model, batch_of(False, lengths)), 1e-10)
    assert max(queries for queries, _ in masks) == 4
    if window is None:
        # 13, 5 and 4 queries in calls of at most four, each with the keys up to its last query; two layers
        assert sorted(masks) == sorted(2 * [(4, 13), (4, 17), (4, 21), (1, 22), (3, 6), (2, 8), (4, 5)])


@pytest.mark.parametrize("family", FLAT_FAMILIES)
def test_half_precision_is_computed_in_float32_where_that_is_faster(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is as close to the truth, or closer; what comes out is half precision again."""
    model, losses, outputs = build(family).float(), [], []
    exact = measure(model, batch_of(False))[0]
    original = module.prefix_attention

    def spy(query: Tensor, *args: Any) -> Tensor:
        output = original(query, *args)
        outputs.append((query.dtype, output.dtype))
        return output

    monkeypatch.setattr(module, "prefix_attention", spy)
    for slower in (True, False):
        monkeypatch.setattr(prefix_attention, "half_is_slower", lambda slower=slower: slower)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(measure(model, batch_of(True))[0])
    assert set(outputs) == {(torch.bfloat16, torch.bfloat16)}
    assert losses[0] != losses[1]
    wide, half = ((loss - exact).abs() / exact.abs() for loss in losses)
    assert wide <= half + 5e-3


# ---- switched on for flattened rows alone


def test_configuration_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("gemma3")
    config = causal_lm_of(model).config
    token_logprobs(model, batch_of(True)).sum().backward()
    assert config._attn_implementation == "sdpa"
    monkeypatch.setattr(module, "_sdpa", None)
    with pytest.raises(TypeError):
        token_logprobs(model, batch_of(True))
    assert config._attn_implementation == "sdpa"


def test_plain_calls_never_come_here(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("qwen3").eval()
    token_logprobs(model, batch_of(True))
    monkeypatch.setattr(module, "_sdpa", None)
    ids = torch.tensor([[1, 2, 3]])
    model(input_ids=ids)
    model.generate(ids, max_new_tokens=2, attention_mask=torch.ones_like(ids))
    token_logprobs(model, batch_of(False))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_layers_computed_again_in_the_backward(adapter: bool, reentrant: bool) -> None:
    """Checkpointed layers run when the decoder's forward is long over."""
    model: Any = build("gemma3", adapter)
    expected = measure(model, batch_of(True))
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    seen = []
    hook = model.get_base_model() if adapter else model
    hook.get_decoder().layers[0].self_attn.register_forward_hook(lambda *given: seen.append(1))
    assert_same(measure(model, batch_of(True)), expected, 0)
    assert len(seen) == 2, "nothing was computed again"


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_through_ddp(one_process: None, adapter: bool) -> None:
    model = build("qwen3", adapter)
    expected = measure(model, batch_of(True))
    loss, gradients = measure(nn.parallel.DistributedDataParallel(model), batch_of(True))
    assert_same((loss, {n.removeprefix("module."): g for n, g in gradients.items()}), expected, 0)


def test_through_fsdp(one_process: None) -> None:
    model: Any = build("gemma3")
    expected = measure(model, batch_of(True))
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loss, gradients = measure(model, batch_of(True))
    assert_same((loss, {n: g.full_tensor() for n, g in gradients.items()}), expected, 0)


def test_lengths_travel_as_plain_integers() -> None:
    """No loader makes tensors of them: reading one on a GPU would wait for it."""
    rows = [{"input_ids": [1, 2, 3], "completion_mask": [False, True, True], "row_index": 0}] * 4
    loader = Accelerator(cpu=True).prepare(
        DataLoader(rows, batch_size=2, collate_fn=SFTCollator(0, padding_free=True))
    )
    pairs = batch_of(True)
    pinned = {
        **pairs,
        "row_lengths": pin_memory(pairs["row_lengths"]),
    }  # as lists; pinning tensors needs a GPU
    for batch in (*loader, send_to_device(pairs, "cpu"), pinned):
        assert all(type(size) is int for row in batch["row_lengths"] for size in row)
        assert sum(map(sum, batch["row_lengths"])) == batch["input_ids"].shape[1]
    model = build("llama")
    assert torch.equal(token_logprobs(model, pinned), token_logprobs(model, pairs))


# ---- other kernels


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: Any, softcap: float
) -> Tensor:
    """Bottom-right causal attention of (tokens, heads, size), in plain torch; `window` as FlashAttention has it."""
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * (scale or query.shape[-1] ** -0.5)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    shift = len(key) - len(query)
    back = torch.arange(len(query))[:, None] + shift - torch.arange(len(key))[None, :]
    hidden = (back < 0) | ((back > window[0]) if window[0] >= 0 else torch.tensor(False))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)


def plain_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    """The signature of FlashAttention's variable-length function, in plain torch."""
    assert causal
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    sizes_q, sizes_k = (cu.diff().tolist() for cu in (cu_seqlens_q, cu_seqlens_k))
    assert (max(sizes_q), max(sizes_k)) == (max_seqlen_q, max_seqlen_k)
    parts = zip(q.split(sizes_q), k.split(sizes_k), v.split(sizes_k), strict=True)
    return torch.cat([attend(*part, softmax_scale, window_size, softcap) for part in parts])


def plain_flash(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, **kwargs: Any) -> Tensor:
    """The signature of FlashAttention's function for rows of one length."""
    sizes = torch.tensor([0, *[q.shape[1]] * len(q)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    flat = (t.flatten(0, 1) for t in (q, k, v))
    length = q.shape[1]
    return plain_varlen(*flat, sizes, sizes, length, length, causal=causal, **kwargs).view_as(q)


@pytest.fixture
def flash_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers finds plain torch functions where FlashAttention's would be."""
    process = modeling_flash_attention_utils._lazy_define_process_function(plain_varlen)
    found = (plain_flash, plain_varlen, None, None, None), (process, process)
    monkeypatch.setattr(
        modeling_flash_attention_utils, "lazy_import_flash_attention", lambda *given, **kwargs: found
    )


@pytest.mark.parametrize("lengths", [LENGTHS, [(3, 1, 1), (5, 1, 1)]], ids=["pairs", "no rejected inputs"])
@pytest.mark.parametrize("family", [*FLAT_FAMILIES, "gemma2"])
def test_flash_attention_gets_one_call_for_all_parts(family: str, lengths: Any, flash_stand_in: None) -> None:
    """Loss and gradients by the real call path; Gemma 2's soft cap is one the kernel knows."""
    with Float64Throughout():
        model = build(family, **({"sliding_window": 3} if family.startswith("gemma") else {}))
        config = causal_lm_of(model).config
        exact = measure(model, batch_of(False, lengths))
        config._attn_implementation = "flash_attention_2"
        plain = measure(model, batch_of(False, lengths))
        flat = measure(model, batch_of(True, lengths))
        assert_same(flat, plain, 1e-10)
        assert_same(flat, exact, 1e-10)
    assert config._attn_implementation == "flash_attention_2"


def flash_model() -> Any:
    model = tiny_model("qwen3", VOCAB, dtype=torch.bfloat16).eval()
    install_logprob_forward(model)
    model.config._attn_implementation = "flash_attention_2"
    return model


def test_check_measures_the_rule_where_flash_attention_cannot_run_yet() -> None:
    model = flash_model()
    found = check_logprob_forward(model)
    assert found.padding_free, found.padding_free_refusal
    assert "flash_attention_2" in found.shared_prefix_refusal
    assert model.config._attn_implementation == "flash_attention_2"
    model.get_decoder().layers[0].mlp.register_forward_hook(lambda module, given, output: output.cumsum(1))
    assert "does not honour flattened rows" in check_logprob_forward(model).padding_free_refusal


@torch.no_grad()
def test_a_flash_kernel_is_trusted_by_its_rounding(
    flash_stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plain, flat = flash_model(), batch_of(False), batch_of(True)
    exact = logprobs._by_pair(token_logprobs(flash_model().float(), plain), plain)
    assert logprobs._kernel_refusal(model, plain, flat, exact) == ""
    original = FlatRows.varlen

    def first_key_for_all(rows: FlatRows, device: torch.device) -> Any:
        calls = original(rows, device)
        return calls._replace(key_index=torch.zeros_like(calls.key_index))

    monkeypatch.setattr(FlatRows, "varlen", first_key_for_all)
    assert "nats off" in logprobs._kernel_refusal(model, plain, flat, exact)


@pytest.mark.parametrize("family", [*FLAT_FAMILIES, "gemma2"])
def test_flex_attention_gets_a_block_mask(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward alone: on a CPU, FlexAttention has no backward."""

    def uncompiled(*tensors: Tensor, training: bool = False, **kwargs: Any) -> Any:
        return flex_attention(*tensors, **kwargs)

    monkeypatch.setattr(flex_integration, "compile_friendly_flex_attention", uncompiled)
    lengths = [(9, 5, 7), (1, 1, 1)]
    with Float64Throughout(), torch.no_grad():
        model = build(family, **({"sliding_window": 3} if family.startswith("gemma") else {}))
        plain, flat = batch_of(False, lengths), batch_of(True, lengths)
        expected = per_pair(token_logprobs(model, plain), plain)
        causal_lm_of(model).config._attn_implementation = "flex_attention"
        found = per_pair(token_logprobs(model, flat), flat)
    # Gemma 2's softmax is float32 in the eager form, its truth here
    tolerance = 1e-6 if family == "gemma2" else 1e-10
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", ["sdpa", "flex_attention", "flash_attention_2"])
@pytest.mark.parametrize("family", FLAT_FAMILIES)
def test_on_a_gpu(family: str, attention: str) -> None:
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model = build(family).float().cuda()
    expected = {n: g.clone() for n, g in measure(model, _on_gpu(batch_of(False)))[1].items()}
    causal_lm_of(model).config._attn_implementation = attention
    found = check_logprob_forward(model)
    assert found.padding_free, found.padding_free_refusal
    half = attention == "flash_attention_2"
    with torch.autocast("cuda", dtype=torch.bfloat16) if half else nullcontext():
        gradients = measure(model, _on_gpu(batch_of(True)))[1]
    for name, gradient in gradients.items():
        error = (gradient - expected[name]).norm() / expected[name].norm().clamp(min=1e-6)
        assert error < (5e-2 if half else 1e-4), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_synchronisation_on_a_gpu(dtype: torch.dtype) -> None:
    """A forward and a backward that never wait for the device."""
    model = tiny_model("gemma3", VOCAB, dtype=dtype).cuda()
    install_logprob_forward(model)
    batch = _on_gpu(batch_of(True))
    token_logprobs(model, batch).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        token_logprobs(model, batch).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _on_gpu(batch: Batch) -> Batch:
    return {k: v.cuda() if isinstance(v, Tensor) else v for k, v in batch.items()}


# ---- refused where not understood


def call(rows: Any = ((3, 1, 2),), window: int | None = None, **kwargs: Any) -> Tensor:
    layer = build("qwen3").get_decoder().layers[0].self_attn  # type: ignore[operator]
    query, key = torch.randn(1, 2, 6, 32), torch.randn(1, 1, 6, 32)
    inputs = {"flat_rows": FlatRows(rows, "sdpa"), "scaling": 0.2, "sliding_window": window} | kwargs
    return flat_attention(layer, query, key, key, **inputs)[0]


def test_what_layers_hand_on_and_means_nothing_is_taken() -> None:
    assert call(position_ids=torch.arange(6), use_cache=False, output_attentions=None).shape == (1, 6, 2, 32)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"s_aux": torch.zeros(2)}, "s_aux"),
        ({"softcap": 50.0}, "softcap"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"attention_mask": torch.ones(1, 1, 6, 6)}, "attention_mask"),
        ({"output_attentions": True}, "output_attentions"),
        ({"dropout": 0.1}, "dropout"),
        ({"is_causal": False}, "causal"),
        ({"window": 4}, "4 positions back, by its configuration None"),
        ({"rows": ((3, 1, 1),)}, "6 keys for the 5 tokens"),
        ({"flat_rows": None}, "hands no keywords on"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_else_is_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        call(**given)


def test_attention_dropout_falls_back() -> None:
    model = build("qwen3", attention_dropout=0.1)
    found = check_logprob_forward(model)
    assert "attention_dropout: 0.1" in found.padding_free_refusal
    assert found.shared_prefix
    with pytest.raises(ModelError, match="dropout"):
        token_logprobs(model, batch_of(True))


def test_a_window_the_layers_do_not_hand_on_falls_back() -> None:
    """Windows are far wider than a probe: what they are told must agree with the configuration."""
    model: Any = build("gemma3", sliding_window=512)
    assert check_logprob_forward(model).padding_free
    model.get_decoder().layers[0].self_attn.sliding_window = None
    assert "by its configuration 512" in check_logprob_forward(model).padding_free_refusal


def test_attention_that_looks_nothing_up_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer with attention of its own would see one long text."""
    model: Any = build("llama")
    for layer in model.get_decoder().layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {k: v for k, v in kwargs.items() if k != "flat_rows"}),
            with_kwargs=True,
            prepend=True,
        )
    assert "hands no keywords on" in check_logprob_forward(model).padding_free_refusal
    monkeypatch.setattr(type(model.get_decoder().layers[0]), "forward", lambda self, hidden, **kwargs: hidden)
    assert "no attention that takes flattened rows" in check_logprob_forward(model).padding_free_refusal
