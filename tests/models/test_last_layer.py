"""The last layer where it is read: the same log-probs and gradients, and fewer products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from holdfast.data.collate import Batch, PairCollator, SFTCollator
from holdfast.models.flat_rows import FlatRows
from holdfast.models.tiny import tiny_model
from holdfast.models.token_logprobs import install_logprob_forward, token_logprobs

from .conftest import FLAT_FAMILIES, LENGTHS, VOCAB, Float64Throughout, assert_same, build, examples


def batch_of(lengths: list[tuple[int, int, int]] = LENGTHS) -> Batch:
    return PairCollator(0, True, True)(examples(lengths))


def everywhere(batch: Batch) -> Batch:
    return {key: value for key, value in batch.items() if key != "read_index"}


def measure(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the log-probs, each with a factor of its own, and its gradients."""
    model.zero_grad()
    logps = token_logprobs(model, batch)
    (logps * torch.linspace(-1, 2, len(logps), dtype=logps.dtype)).sum().backward()
    return logps.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def rows_of_the_last_mlp(model: Any, batch: Batch) -> list[int]:
    """Positions that the last and the first layer's MLP computed."""
    seen: list[int] = []
    decoder = (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()
    handles = [
        decoder.layers[n].mlp.down_proj.register_forward_hook(lambda m, a, out: seen.append(out.shape[1]))
        for n in (-1, 0)
    ]
    token_logprobs(model, batch)
    for handle in handles:
        handle.remove()
    return sorted(seen)


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
    assert rows_of_the_last_mlp(model, batch) == [read, tokens]
    assert rows_of_the_last_mlp(model, everywhere(batch)) == [tokens, tokens]


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
    assert rows_of_the_last_mlp(model, batch) == [len(batch["read_index"]), batch["input_ids"].shape[1]]


def two_graphs(model: Any, batches: list[Batch]) -> list[dict[str, Tensor]]:
    """Gradients of both batches, each layer computed again in the backward, after both have been through it."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    sums = []
    for batch in batches:
        logps = token_logprobs(model, batch)
        sums.append((logps * torch.linspace(-1, 2, len(logps), dtype=logps.dtype)).sum())
    found = []
    for loss in sums:
        model.zero_grad()
        loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    return found


BATCHES = [batch_of(), batch_of([(8, 2, 3), (5, 5, 1)])]


def test_two_graphs_computed_again() -> None:
    """Checkpointing runs the layer without its hooks, after another batch has been through it."""
    model: Any = build("qwen3")
    expected = [measure(model, everywhere(batch)) for batch in BATCHES]
    for (loss, gradients), found in zip(expected, two_graphs(model, BATCHES), strict=True):
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
        assert rows_of_the_last_mlp(model, batch)[0] == batch["input_ids"].shape[1]
    for (loss, gradients), found in zip(expected, two_graphs(model, BATCHES), strict=True):
        assert_same((loss, found), (loss, gradients), 1e-6)


def test_plain_calls_compute_everything() -> None:
    model: Any = build("qwen3").eval()
    token_logprobs(model, batch_of())
    seen: list[int] = []
    model.get_decoder().layers[-1].mlp.register_forward_hook(lambda m, a, out: seen.append(out.shape[1]))
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    logits = model(input_ids=ids).logits
    assert seen == [6]
    assert logits[0, 0].abs().sum() > 0
    padded = PairCollator(0, True, False)(examples(LENGTHS))
    assert "read_index" not in padded


def test_nearly_all_read_is_all() -> None:
    lengths = [(2, 5, 4)]
    few, many = torch.arange(1, 10), torch.arange(1, 11)
    assert FlatRows(lengths, "sdpa", few).read is few
    assert FlatRows(lengths, "sdpa", many).read is None
    assert FlatRows(lengths, "sdpa").read is None
