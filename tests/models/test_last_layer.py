"""The last layer where it is read: the same log-probs and gradients, and fewer products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from holdfast.data.collate import Batch, PairCollator, SFTCollator
from holdfast.models.flat_rows import FlatRows
from holdfast.models.tiny import tiny_model
from holdfast.models.token_logprobs import (
    causal_lm_of,
    check_logprob_forward,
    install_logprob_forward,
    token_logprobs,
)
from holdfast.training.shares import emptied

from .conftest import FLAT_FAMILIES, LENGTHS, VOCAB, Float64Throughout, assert_same, build, examples


def batch_of(lengths: list[tuple[int, int, int]] = LENGTHS) -> Batch:
    return PairCollator(0, True, True)(examples(lengths))


def everywhere(batch: Batch) -> Batch:
    return {key: value for key, value in batch.items() if key != "read_index"}


def weighted(logps: Tensor) -> Tensor:
    """Their sum, each with a factor of its own."""
    return (logps * torch.linspace(-1, 2, len(logps), dtype=logps.dtype)).sum()


def measure(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The log-probs, and the gradients of their weighted sum."""
    model.zero_grad()
    logps = token_logprobs(model, batch)
    weighted(logps).backward()
    return logps.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def positions_computed(model: Any, batch: Batch) -> list[set[int]]:
    """How many positions the last layer's query and output projections and its MLP computed, and the first layer's."""
    decoder = causal_lm_of(model).get_decoder()
    found: list[set[int]] = []
    handles = []
    for layer in (decoder.layers[-1], decoder.layers[0]):
        seen: set[int] = set()
        found.append(seen)
        for module in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.down_proj):
            inner = getattr(module, "base_layer", module)  # of an adapter
            handles.append(inner.register_forward_pre_hook(lambda m, a, s=seen: s.add(a[0].shape[1])))
    token_logprobs(model, batch)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FLAT_FAMILIES)
def test_the_same_and_less(family: str, adapter: bool) -> None:
    batch = batch_of()
    read, tokens = len(batch["read_index"]), batch["input_ids"].shape[1]
    assert read < 0.9 * tokens
    with Float64Throughout():
        model = build(family, adapter)
        expected = measure(model, everywhere(batch))
        assert_same(measure(model, batch), expected, 1e-12)
    assert positions_computed(model, batch) == [{read}, {tokens}]
    assert positions_computed(model, everywhere(batch)) == [{tokens}, {tokens}]


ROWS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(lengths=ROWS)
def test_any_lengths(lengths: list[tuple[int, int, int]]) -> None:
    batch = batch_of(lengths)
    with Float64Throughout():
        model = build("qwen3")
        assert_same(measure(model, batch), measure(model, everywhere(batch)), 1e-12)


def test_demonstrations_of_several_turns() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = [
        {
            "input_ids": torch.randint(VOCAB, (size,), generator=generator).tolist(),
            "completion_mask": [False, *(n % 5 > 2 for n in range(1, size))],
            "row_index": 0,
        }
        for size in (20, 9, 31)
    ]
    batch = SFTCollator(0, padding_free=True)(rows)
    with Float64Throughout():
        model = build("llama")
        assert_same(measure(model, batch), measure(model, everywhere(batch)), 1e-12)
    assert positions_computed(model, batch) == [{len(batch["read_index"])}, {batch["input_ids"].shape[1]}]


def two_graphs(model: Any, batches: list[Batch], reentrant: bool = False) -> list[dict[str, Tensor]]:
    """Gradients of both batches, each layer computed again in the backward, after both have been through it."""
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    sums = [weighted(token_logprobs(model, batch)) for batch in batches]
    found = []
    for loss in sums:
        model.zero_grad()
        loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    return found


BATCHES = [batch_of(), batch_of([(8, 2, 3), (5, 5, 1)])]


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_graphs_computed_again(reentrant: bool) -> None:
    """Checkpointing runs the layer without its hooks, after another batch has been through it."""
    model: Any = build("qwen3")
    expected = [measure(model, everywhere(batch)) for batch in BATCHES]
    for (loss, gradients), found in zip(expected, two_graphs(model, BATCHES, reentrant), strict=True):
        assert_same((loss, found), (loss, gradients), 1e-6)  # norms are float32


class MlpFirst(GradientCheckpointingLayer):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn, self.mlp, self.input_layernorm = layer.self_attn, layer.mlp, layer.input_layernorm

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        states = self.input_layernorm(hidden_states)
        result: Tensor = hidden_states + self.mlp(states)
        return result + self.self_attn(hidden_states=states, **kwargs)[0]


def test_an_mlp_before_its_attention_is_left_alone() -> None:
    """In the recomputation nothing tells it whose rows these are: it would go by another batch's."""
    model: Any = tiny_model("llama", VOCAB, dtype=torch.float64)
    layers = model.get_decoder().layers
    layers[-1] = MlpFirst(layers[-1])
    install_logprob_forward(model)
    expected = [measure(model, everywhere(batch)) for batch in BATCHES]
    for batch in BATCHES:
        # its projections, and the MLP
        assert positions_computed(model, batch)[0] == {len(batch["read_index"]), batch["input_ids"].shape[1]}
    for (loss, gradients), found in zip(expected, two_graphs(model, BATCHES), strict=True):
        assert_same((loss, found), (loss, gradients), 1e-6)


def test_calls_without_rows_compute_everything() -> None:
    model, untouched = build("qwen3"), tiny_model("qwen3", VOCAB, dtype=torch.float64)
    token_logprobs(model, batch_of())
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    torch.testing.assert_close(model(input_ids=ids).logits, untouched(input_ids=ids).logits)
    padded = PairCollator(0, True, False)(examples(LENGTHS))
    tokens = padded["input_ids"].shape[1]
    assert "read_index" not in padded
    assert positions_computed(model, padded) == [{tokens}, {tokens}]


def test_a_share_without_rows() -> None:
    """A process that has none left computes a row that stands in, and no token of it is scored."""
    model = build("llama")
    loss, gradients = measure(model, emptied(batch_of()))
    assert len(loss) == 0
    assert all(not gradient.any() for gradient in gradients.values())


def test_under_autocast() -> None:
    model: Any = tiny_model("llama", VOCAB)
    install_logprob_forward(model)
    batch = batch_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (loss, gradients), (expected, others) = measure(model, batch), measure(model, everywhere(batch))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-2)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, others[name], rtol=0, atol=2e-2 * float(others[name].abs().max())
        )


def mixture() -> Any:
    """Its experts are gated MLPs as well, and take (tokens, hidden)."""
    torch.manual_seed(0)
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_experts=4,
            num_experts_per_tok=2,
        )
    ).eval()


def test_a_mixture_of_experts() -> None:
    model = mixture()
    install_logprob_forward(model)
    assert check_logprob_forward(model).padding_free
    batch = batch_of()
    torch.testing.assert_close(
        token_logprobs(model, batch), token_logprobs(model, everywhere(batch)), rtol=1e-4, atol=1e-5
    )
    assert model._holdfast_reads_less


class Looped(nn.Module):
    """A layer that mixes positions behind its MLP."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer, self.self_attn, self.mlp = layer, layer.self_attn, layer.mlp
        self.attention_type = getattr(layer, "attention_type", "full_attention")

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        once = self.layer(hidden_states, **kwargs)
        result: Tensor = self.layer(once, **kwargs)
        return result


def test_a_model_that_reads_more_computes_everything() -> None:
    """Found out by the check before training; flattened rows stay."""
    model: Any = tiny_model("llama", VOCAB, dtype=torch.float64)
    layers = model.get_decoder().layers
    layers[-1] = Looped(layers[-1])
    install_logprob_forward(model)
    assert check_logprob_forward(model).padding_free
    assert not model._holdfast_reads_less
    batch = batch_of()
    assert torch.equal(token_logprobs(model, batch), token_logprobs(model, everywhere(batch)))


def test_nearly_all_read_is_all() -> None:
    lengths = [(2, 5, 4)]
    few, many = torch.arange(1, 10), torch.arange(1, 11)
    assert FlatRows(lengths, "sdpa", few).read is few
    assert FlatRows(lengths, "sdpa", many).read is None
    assert FlatRows(lengths, "sdpa").read is None
