"""The lean forward equals the plain one: against each model's own logits, and every form of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from holdfast.data.collate import Batch, PairCollator, SFTCollator
from holdfast.errors import ModelError
from holdfast.models import token_logprobs as module
from holdfast.models.tiny import tiny_model
from holdfast.models.token_logprobs import (
    causal_lm_of,
    check_logprob_forward,
    head_form,
    install_logprob_forward,
    token_logprobs,
    token_losses,
)
from tests.models.conftest import (
    CASES,
    FAMILIES,
    FORMS,
    LENGTHS,
    VOCAB,
    Float64Throughout,
    assert_same,
    build,
    examples,
    independent,
    loss_and_gradients,
    per_pair,
)


@pytest.fixture(autouse=True)
def float64_throughout() -> Iterator[None]:
    with Float64Throughout():
        yield


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("family", "form"), CASES)
def test_loss_and_gradients_equal_the_concatenated_form(family: str, form: str, adapter: bool) -> None:
    model = build(family, adapter)
    rows = examples(LENGTHS)
    batch = PairCollator(0, *FORMS[form])(rows)
    expected = loss_and_gradients(model, independent(model, rows))
    assert expected[1], "nothing is trained"
    found = loss_and_gradients(model, per_pair(token_logprobs(model, batch), batch))
    assert_same(found, expected, 1e-10)


@pytest.mark.parametrize(
    ("family", "form"), [(family, form) for family, form in CASES if form in ("shared", "flat")]
)
def test_continued_positions_would_be_seen(family: str, form: str) -> None:
    """The tests above can tell a rejected part that goes on counting where the chosen one ended."""
    model = build(family)
    rows = examples([(9, 5, 7)])
    batch = PairCollator(0, *FORMS[form])(rows)
    wrong = dict(batch, position_ids=torch.arange(batch["input_ids"].shape[1])[None])
    right, broken = token_logprobs(model, batch), token_logprobs(model, wrong)
    slots = batch["rejected_slots"][0]
    assert (right[slots] - broken[slots]).abs().max() > 1e-6


@pytest.mark.parametrize("form", ["shared", "flat"])
def test_sliding_windows_count_positions_not_rows(form: str) -> None:
    """With a window of 4 and a chosen part of 12, a row-index window would cut the rejected part off its prompt."""
    model = build("gemma3", sliding_window=4)
    rows = examples([(6, 12, 5)])
    batch = PairCollator(0, *FORMS[form])(rows)
    found = per_pair(token_logprobs(model, batch), batch)[0]
    expected = independent(model, rows)[0]
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4
    ),
    case=st.sampled_from([case for case in CASES if case[1] != "plain"]),
    adapter=st.booleans(),
)
def test_any_lengths(lengths: list[tuple[int, int, int]], case: tuple[str, str], adapter: bool) -> None:
    family, form = case
    # narrower than most rows: a window that is never reached is no test
    model = build(family, adapter, **({"sliding_window": 3} if family.startswith("gemma") else {}))
    rows = examples(lengths, seed=2)
    lean, plain = (PairCollator(0, *FORMS[name])(rows) for name in (form, "plain"))
    assert_same(
        loss_and_gradients(model, per_pair(token_logprobs(model, lean), lean)),
        loss_and_gradients(model, per_pair(token_logprobs(model, plain), plain)),
        1e-10,
    )


def test_only_completion_positions_reach_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("qwen3")
    seen: list[int] = []
    original = module.linear_logprob

    def spy(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(hidden.shape[0])
        return original(hidden, *args, **kwargs)

    monkeypatch.setattr(module, "linear_logprob", spy)
    outputs: list[Any] = []
    head = causal_lm_of(model).get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: outputs.append(output.shape))
    token_logprobs(model, PairCollator(0)(examples(LENGTHS)))
    scored = sum(c + r for _, c, r in LENGTHS)
    assert seen == [scored]
    # the head is called, since launchers gather its weight around that call; no logits leave it
    assert outputs == [(scored,)]
    assert model(input_ids=torch.zeros(1, 3, dtype=torch.long)).logits.shape[:2] == (1, 3)


@pytest.mark.parametrize("padding_free", [True, False])
def test_sft_rows_against_own_logits(padding_free: bool) -> None:
    model = build("gemma3")
    ids = examples([(20, 1, 1), (2, 1, 1), (13, 1, 1)])
    masks = [[False] * 5 + [True] * 4 + [False] * 6 + [True] * 5, [False, True], [False] * 9 + [True] * 4]
    rows = [
        {"input_ids": row["prompt_ids"], "completion_mask": mask, "row_index": row["row_index"]}
        for row, mask in zip(ids, masks, strict=True)
    ]
    expected = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        trained = [i for i, flag in enumerate(row["completion_mask"]) if flag]
        expected += [logits[i - 1, row["input_ids"][i]] for i in trained]
    found = token_logprobs(model, SFTCollator(0, padding_free)(rows))
    as_pairs = [(logps[:7], logps[7:]) for logps in (found, torch.stack(expected))]
    assert_same(*(loss_and_gradients(model, [pair]) for pair in as_pairs), 1e-10)


def test_generation_and_plain_calls_stay_as_they_were() -> None:
    plain, taught = (tiny_model("llama", VOCAB, dtype=torch.float64) for _ in range(2))
    install_logprob_forward(taught)
    install_logprob_forward(taught)  # twice is once
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(
        plain(ids).logits, taught(ids).logits, rtol=1e-6, atol=1e-8
    )  # the order of rounding
    options: dict[str, Any] = {
        "max_new_tokens": 5,
        "do_sample": False,
        "attention_mask": torch.ones_like(ids),
    }
    assert torch.equal(plain.eval().generate(ids, **options), taught.eval().generate(ids, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_check_finds_the_forms_a_model_takes(family: str) -> None:
    found = check_logprob_forward(build(family))
    assert found.shared_prefix, found.shared_prefix_refusal
    assert found.padding_free is (family != "gemma2"), found.padding_free_refusal
    if family == "gemma2":
        assert "eager" in found.padding_free_refusal


def test_check_sees_a_layer_that_mixes_neighbouring_tokens() -> None:
    """What a convolution or a recurrent layer does: the model's own logits have it, rows side by side must not."""
    model = build("llama")
    mixed = causal_lm_of(model).get_decoder().layers[0].mlp
    mixed.register_forward_hook(
        lambda module, inputs, output: output + torch.nn.functional.pad(output[:, :-1], (0, 0, 1, 0))
    )
    found = check_logprob_forward(model)
    assert found.padding_free_refusal == "the architecture does not honour flattened rows"
    assert found.shared_prefix_refusal == "the architecture does not honour a shared-prefix mask"


def test_check_falls_back_where_no_mask_of_ours_is_taken() -> None:
    model = build("llama")
    causal_lm_of(model).config._attn_implementation = "flash_attention_2"
    # decided before any attention runs, so no kernel is needed
    assert "flash_attention_2" in module._mask_refusal(causal_lm_of(model).config)


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
    assert "rule of its own" in found.shared_prefix_refusal
    assert "rule of its own" in found.padding_free_refusal


def test_check_of_half_precision_weights_is_as_strict_and_leaves_them() -> None:
    model = tiny_model("qwen3", VOCAB, dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    install_logprob_forward(model)
    with pytest.MonkeyPatch.context() as patch:
        # rejected positions that go on where the chosen part ended: far below what bfloat16 could tell
        wrong = module.PairCollator
        patch.setattr(module, "PairCollator", lambda *a, **k: _Continued(wrong(*a, **k)))
        found = check_logprob_forward(model)
        assert not found.shared_prefix
        assert not found.padding_free
    found = check_logprob_forward(model)
    assert found.shared_prefix
    assert found.padding_free
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


@pytest.mark.parametrize("frozen", [False, True])
def test_the_form_of_the_head_is_said_in_words(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model("llama", VOCAB)
    model.get_output_embeddings().weight.requires_grad_(not frozen)
    asked: list[Any] = []

    def pick(device: Any, dtype: Any, logits: int) -> str:
        asked.append((device, dtype))
        return "triton"

    cpu = torch.device("cpu")
    assert head_form(model, cpu, None, sums_losses=False) == "torch, a block of the vocabulary at a time"
    fused = "torch, a chunk of tokens at a time, its gradient in the forward"
    assert (head_form(model, cpu, None, sums_losses=True) == fused) == (not frozen)
    monkeypatch.setattr(module, "implementation_for", pick)
    assert head_form(model, cpu, torch.bfloat16, sums_losses=False) == "Triton kernel"
    head_form(model, cpu, None, sums_losses=False)
    assert asked == [(cpu, torch.bfloat16), (cpu, torch.float32)]
    install_logprob_forward(model, "reference")
    assert head_form(model, cpu, None, sums_losses=True) == "torch, whole logits"


@pytest.mark.parametrize("implementation", ["auto", "chunked", "reference"])
def test_the_head_is_computed_as_asked_for(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the choice outlives whatever prepares the model once more without one."""
    model, batch = (
        build("llama"),
        SFTCollator(0)([{"input_ids": [1, 2], "completion_mask": [0, 1], "row_index": 0}]),
    )
    install_logprob_forward(model, implementation)
    install_logprob_forward(model)
    seen: list[Any] = []

    def spy(name: str) -> None:
        original = getattr(module, name)

        def called(*inputs: Any, **options: Any) -> Any:
            seen.append((name, options.get("implementation")))
            return original(*inputs, **options)

        monkeypatch.setattr(module, name, called)

    spy("linear_logprob")
    spy("linear_objective")
    pair_form = token_logprobs(model, batch)
    total, logps = token_losses(model, batch, torch.neg)
    torch.testing.assert_close(logps, pair_form)
    torch.testing.assert_close(total, -pair_form.sum())
    summed = ("linear_objective", None) if implementation == "auto" else ("linear_logprob", implementation)
    assert seen == [("linear_logprob", implementation), summed]
