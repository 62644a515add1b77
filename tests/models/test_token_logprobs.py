"""The lean forward equals the plain one: against each model's own logits, and shared prefix against plain rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from holdfast.data.collate import Batch, PairCollator, SFTCollator
from holdfast.errors import ModelError
from holdfast.models import token_logprobs as module
from holdfast.models.adapters import attach_adapter, lora_config
from holdfast.models.tiny import tiny_model
from holdfast.models.token_logprobs import (
    causal_lm_of,
    check_logprob_forward,
    install_logprob_forward,
    token_logprobs,
)

VOCAB = 61
FAMILIES = ["llama", "qwen3", "gemma3", "gemma2"]
LENGTHS = [(9, 5, 7), (1, 1, 1), (4, 12, 1), (13, 1, 11)]


class Float64Throughout(TorchFunctionMode):
    """Casts to float32 become casts to float64.

    The families' norms (and Gemma 2's softmax) compute in float32 whatever the model's dtype, and a sum of
    gradients taken in another order differs there by 1e-7: without this the test could not look past that.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return (Tensor.double if func is Tensor.float else func)(*args, **kwargs)


@pytest.fixture(autouse=True)
def float64_throughout() -> Iterator[None]:
    with Float64Throughout():
        yield


def examples(lengths: list[tuple[int, int, int]], seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, VOCAB, (count,), generator=generator).tolist()

    return [
        {"prompt_ids": tokens(p), "chosen_ids": tokens(c), "rejected_ids": tokens(r), "row_index": n}
        for n, (p, c, r) in enumerate(lengths)
    ]


def build(family: str, adapter: bool = False, **overrides: Any) -> nn.Module:
    model: Any = tiny_model(family, VOCAB, dtype=torch.float64, **overrides)
    if adapter:
        model = attach_adapter(model, lora_config(model, rank=4, alpha=8))
        # LoRA starts at a delta of zero: give it one, or the test could not see it
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    install_logprob_forward(model)
    return model.double()


def independent(model: nn.Module, rows: list[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
    """Each completion alone in its own unpadded row, through the model's own logits."""

    def logps(prompt: list[int], completion: list[int]) -> Tensor:
        ids = torch.tensor([[*prompt, *completion]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]

    return [
        (logps(r["prompt_ids"], r["chosen_ids"]), logps(r["prompt_ids"], r["rejected_ids"])) for r in rows
    ]


def per_pair(logps: Tensor, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    return [
        (logps[chosen[chosen >= 0]], logps[rejected[rejected >= 0]])
        for chosen, rejected in zip(batch["chosen_slots"], batch["rejected_slots"], strict=True)
    ]


def loss_and_gradients(
    model: nn.Module, pairs: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss that weighs every token differently, so that no mistake can cancel out."""
    loss = sum(
        (c * torch.linspace(0.5, 1.5, len(c), dtype=c.dtype)).sum()
        - (r.square() * torch.linspace(1.5, 0.5, len(r), dtype=r.dtype)).sum()
        for c, r in pairs
    )
    assert isinstance(loss, Tensor)
    model.zero_grad()
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def assert_same(
    a: tuple[Tensor, dict[str, Tensor]], b: tuple[Tensor, dict[str, Tensor]], tolerance: float
) -> None:
    torch.testing.assert_close(a[0], b[0], rtol=tolerance, atol=tolerance)
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        scale = b[1][name].abs().max().clamp(min=1.0)
        torch.testing.assert_close(
            a[1][name] / scale, b[1][name] / scale, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_the_concatenated_form(
    family: str, adapter: bool, shared_prefix: bool
) -> None:
    model = build(family, adapter)
    rows = examples(LENGTHS)
    batch = PairCollator(0, shared_prefix=shared_prefix)(rows)
    expected = loss_and_gradients(model, independent(model, rows))
    assert expected[1], "nothing is trained"
    found = loss_and_gradients(model, per_pair(token_logprobs(model, batch), batch))
    assert_same(found, expected, 1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_continued_positions_would_be_seen(family: str) -> None:
    """The tests above can tell a rejected part that goes on counting where the chosen one ended."""
    model = build(family)
    rows = examples([(9, 5, 7)])
    batch = PairCollator(0)(rows)
    wrong = dict(batch, position_ids=torch.arange(batch["input_ids"].shape[1])[None])
    right, broken = token_logprobs(model, batch), token_logprobs(model, wrong)
    slots = batch["rejected_slots"][0]
    assert (right[slots] - broken[slots]).abs().max() > 1e-6


def test_sliding_windows_count_positions_not_rows() -> None:
    """With a window of 4 and a chosen part of 12, a row-index window would cut the rejected part off its prompt."""
    model = build("gemma3", sliding_window=4)
    rows = examples([(6, 12, 5)])
    batch = PairCollator(0)(rows)
    found = per_pair(token_logprobs(model, batch), batch)[0]
    expected = independent(model, rows)[0]
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4
    ),
    family=st.sampled_from(FAMILIES),
)
def test_any_lengths(lengths: list[tuple[int, int, int]], family: str) -> None:
    model = build(family)
    rows = examples(lengths, seed=2)
    shared, plain = PairCollator(0)(rows), PairCollator(0, shared_prefix=False)(rows)
    with torch.no_grad():
        for a, b in zip(
            per_pair(token_logprobs(model, shared), shared),
            per_pair(token_logprobs(model, plain), plain),
            strict=True,
        ):
            torch.testing.assert_close(a[0], b[0], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(a[1], b[1], rtol=1e-10, atol=1e-10)


def test_only_completion_positions_reach_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("qwen3")
    seen: list[int] = []
    original = module.linear_logprob

    def spy(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(hidden.shape[0])
        return original(hidden, *args, **kwargs)

    monkeypatch.setattr(module, "linear_logprob", spy)
    head_calls: list[Any] = []
    causal_lm_of(model).get_output_embeddings().register_forward_hook(lambda *a: head_calls.append(a))
    token_logprobs(model, PairCollator(0)(examples(LENGTHS)))
    assert seen == [sum(c + r for _, c, r in LENGTHS)]
    assert head_calls == []


def test_sft_rows_against_own_logits() -> None:
    model = build("gemma3")
    ids = examples([(20, 1, 1)])[0]["prompt_ids"]
    mask = [False] * 5 + [True] * 4 + [False] * 6 + [True] * 5
    batch = SFTCollator(0)([{"input_ids": ids, "completion_mask": mask, "row_index": 0}])
    logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = torch.stack([logits[i - 1, ids[i]] for i, flag in enumerate(mask) if flag])
    torch.testing.assert_close(token_logprobs(model, batch), expected, rtol=1e-10, atol=1e-10)


def test_generation_and_plain_calls_stay_as_they_were() -> None:
    plain, taught = (tiny_model("llama", VOCAB, dtype=torch.float64) for _ in range(2))
    install_logprob_forward(taught)
    install_logprob_forward(taught)  # twice is once
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(plain(ids).logits, taught(ids).logits, rtol=0, atol=0)
    options: dict[str, Any] = {
        "max_new_tokens": 5,
        "do_sample": False,
        "attention_mask": torch.ones_like(ids),
    }
    assert torch.equal(plain.eval().generate(ids, **options), taught.eval().generate(ids, **options))


def test_check_finds_shared_prefix_support() -> None:
    for family in FAMILIES:
        model = build(family)
        found = check_logprob_forward(model)
        assert found.shared_prefix, found.reason


def test_check_falls_back_where_no_mask_of_ours_is_taken() -> None:
    model = build("llama")
    causal_lm_of(model).config._attn_implementation = "flash_attention_2"
    # decided before any attention runs, so no kernel is needed
    assert "flash_attention_2" in module._mask_refusal(causal_lm_of(model))


def test_local_attention_by_row_index_gets_plain_rows() -> None:
    """GPT-Neo's local layers look back by row index; a short probe would not notice."""
    config = GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
    )
    model = GPTNeoForCausalLM(config)
    install_logprob_forward(model)
    found = check_logprob_forward(model.double())
    assert not found.shared_prefix
    assert "rule of its own" in found.reason


def test_check_of_half_precision_weights_is_as_strict_and_leaves_them() -> None:
    model = tiny_model("qwen3", VOCAB, dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    install_logprob_forward(model)
    with pytest.MonkeyPatch.context() as patch:
        # rejected positions that go on where the chosen part ended: far below what bfloat16 could tell
        wrong = module.PairCollator
        patch.setattr(module, "PairCollator", lambda *a, **k: _Continued(wrong(*a, **k)))
        assert not check_logprob_forward(model).shared_prefix
    assert check_logprob_forward(model).shared_prefix
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[name])


class _Continued:
    def __init__(self, collator: PairCollator) -> None:
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        batch = self.collator(rows)
        if "position_ids" in batch:
            batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
        return batch


def test_check_refuses_logits_it_cannot_reproduce() -> None:
    model = build("llama")
    head = causal_lm_of(model).get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: output * 1.5)
    with pytest.raises(ModelError, match="does not reproduce"):
        check_logprob_forward(model)


def test_softcap_and_scale_come_from_the_config() -> None:
    model = build("gemma2", final_logit_softcapping=2.0)  # caps hard enough to matter
    assert check_logprob_forward(model).shared_prefix
