"""Memory and time from shapes: by hand, and against what a model keeps when it runs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from holdfast.data.collate import SFTCollator
from holdfast.errors import ConfigError, ModelError
from holdfast.experiments.devices import DEVICES, get_device
from holdfast.experiments.estimate_memory import Memory, kept_by, memory_of
from holdfast.experiments.estimate_shape import DecoderShape, LayerShape, decoder_shape
from holdfast.experiments.estimate_work import Work, forward_operations, operations, steps_of, work_of
from holdfast.models.adapters import attach_adapter, lora_config
from holdfast.models.tiny import tiny_config, tiny_model
from holdfast.models.token_logprobs import install_logprob_forward, token_losses
from holdfast.training.config import PreferenceConfig, SFTConfig

# hidden 32: 2 heads of 16, one key-value head, an MLP of 96
LLAMA = LayerShape(hidden=32, query=32, key=16, value=16, feed=96, heads=2, norms=2, head_norms=False)


def on_meta(family: str, **sizes: int) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config(family, 300, **sizes), dtype=torch.float32)


# ---- GPUs


def test_gpus_by_name() -> None:
    assert get_device("H100") is DEVICES["h100"]
    with pytest.raises(ConfigError, match="no GPU called 'h10' is known here .did you mean 'h100'"):
        get_device("h10")


@pytest.mark.parametrize("name", DEVICES)
def test_a_gpu_is_faster_in_half_precision_and_says_its_memory(name: str) -> None:
    device = DEVICES[name]
    assert device.bf16 > 1.9 * device.fp32
    assert f"{device.memory // 10**9} GB" in device.label


# ---- shapes


def test_shape_by_hand() -> None:
    shape = decoder_shape(on_meta("llama", hidden_size=32, layers=2))
    assert shape == DecoderShape((LLAMA, LLAMA), vocab=300, hidden=32)
    assert LLAMA.weights == 32 * (32 + 16 + 16 + 32 + 3 * 96)
    assert (shape.body, shape.head) == (2 * 12_288, 9_600)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2", "gemma3"])
def test_shape_counts_what_the_model_has(family: str) -> None:
    model = on_meta(family, hidden_size=64, layers=3)
    shape = decoder_shape(model)
    projections = [p.numel() for name, p in model.named_parameters() if name.endswith("_proj.weight")]
    assert shape.body == sum(projections)
    assert shape.layers[0].norms == (4 if family.startswith("gemma") else 2)
    assert shape.layers[0].head_norms == (family in ("qwen3", "gemma3"))


def test_other_layers_are_not_guessed() -> None:
    model = on_meta("llama", hidden_size=32, layers=1)
    model.model.layers[0].mlp.router = torch.nn.Linear(32, 4, device="meta")
    with pytest.raises(ModelError, match="LlamaDecoderLayer is more than attention and one gated MLP"):
        decoder_shape(model)
    model.model.layers = None
    with pytest.raises(ModelError, match="no list of decoder layers"):
        decoder_shape(model)


# ---- work


def test_work_of_demonstrations_by_hand() -> None:
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": [[1, 2, 3, 4], [1, 2]],
            "completion_mask": [[False, False, True, True], [False, True]],
        }
    )
    work = work_of(rows)
    assert work.plain.tolist() == [4, 2]
    assert work.computed.tolist() == [3, 1]
    assert work.scored.tolist() == [2, 1]
    assert work.attended.tolist() == [6, 1]
    assert (work.largest(1), work.largest(2), work.largest(3)) == ((3, 2), (4, 3), (4, 3))
    assert (work.average(1), work.average(2), work.average(3)) == ((2, 2), (4, 3), (4, 3))


def test_work_of_pairs_by_hand() -> None:
    rows = datasets.Dataset.from_dict(
        {"prompt_ids": [[1, 2, 3]], "chosen_ids": [[4, 5]], "rejected_ids": [[6, 7, 8]]}
    )
    plain = work_of(rows, shared_prefix=False)
    # [prompt | chosen] has 4 inputs, [prompt | rejected] 5: 10 and 15 pairs of a query and a key
    assert [column.tolist() for column in (plain.plain, plain.computed, plain.scored, plain.attended)] == [
        [11],
        [9],
        [5],
        [25],
    ]
    shared = work_of(rows)
    # the prompt once: 3 tokens and their 6 pairs fewer
    assert [
        column.tolist() for column in (shared.plain, shared.computed, shared.scored, shared.attended)
    ] == [
        [11],
        [6],
        [5],
        [19],
    ]


def test_work_of_more_rows_than_are_read_at_a_time() -> None:
    lengths = [2 + n % 5 for n in range(2_500)]
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": [[0] * n for n in lengths],
            "completion_mask": [[False] + [True] * (n - 1) for n in lengths],
        }
    )
    work = work_of(rows)
    assert work.plain.tolist() == lengths
    assert work.scored.tolist() == [n - 1 for n in lengths]


@pytest.mark.parametrize(
    ("rows", "settings", "gpus", "steps"),
    [
        (100, {}, 1, 39),  # 13 micro-batches, 13 steps an epoch
        (100, {"gradient_accumulation_steps": 4}, 1, 12),  # 13 / 4, rounded up
        (100, {"gradient_accumulation_steps": 4}, 2, 6),  # 7 / 4
        (100, {"dataloader_drop_last": True}, 1, 36),
        (100, {"num_train_epochs": 0.5}, 1, 7),  # 6.5, rounded up
        (100, {"max_steps": 5}, 1, 5),
        (3, {"dataloader_drop_last": True, "num_train_epochs": 1}, 1, 1),
    ],
)
def test_steps_by_hand(rows: int, settings: dict[str, Any], gpus: int, steps: int, tmp_path: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8, **settings)
    assert steps_of(rows, args, gpus) == steps


def test_operations_by_hand() -> None:
    shape = DecoderShape((LLAMA, LLAMA), vocab=300, hidden=32)
    work = Work(*(np.array([n]) for n in (11, 10, 4, 55)))
    attention = 4 * 55 * 32 * 2
    body, head = 24_576 * 10, 9_600 * 4
    full = operations(shape, work, trains_body=True, trains_head=True)
    assert full == 6 * body + 3.5 * attention + 6 * head
    assert (
        operations(shape, work, trains_body=True, trains_head=True, again=1.0) - full == 2 * body + attention
    )
    frozen = operations(shape, work, trains_body=False, trains_head=False, adapter=100)
    assert frozen == 4 * body + 6 * 100 * 10 + 3.5 * attention + 4 * head
    assert forward_operations(shape, work) == 2 * (body + head) + attention


# ---- memory


def arguments(tmp_path: Path, config: Any = SFTConfig, **settings: Any) -> Any:
    return config(output_dir=str(tmp_path), use_cpu=True, **{"gradient_accumulation_steps": 1} | settings)


def test_states_by_hand(tmp_path: Path) -> None:
    model = on_meta("llama", hidden_size=32, layers=2)
    shape, weights = decoder_shape(model), model.num_parameters()
    full = memory_of(model, shape, arguments(tmp_path), 10, 4, None)
    assert (full.weights, full.gradients, full.optimizer) == (4 * weights, 4 * weights, 8 * weights)
    assert full.casts == 0
    mixed = memory_of(model, shape, arguments(tmp_path, bf16=True), 10, 4, None)
    assert mixed.casts == 2 * (shape.body + shape.head)
    for optimizer, a_weight in (("sgd", 0), ("adafactor", 0), ("rmsprop", 8)):
        found = memory_of(model, shape, arguments(tmp_path, optim=optimizer), 10, 4, None)
        assert found.optimizer == a_weight * weights
    adapted = attach_adapter(model, lora_config(model, rank=2, train_head=False))
    lora = 2 * sum(inputs + outputs for inputs, outputs in LLAMA.projection_sizes) * 2
    found = memory_of(adapted, shape, arguments(tmp_path), 10, 4, 2)
    assert (found.gradients, found.optimizer, found.weights) == (4 * lora, 8 * lora, 4 * (weights + lora))


def test_a_layer_by_hand() -> None:
    norms, attention, gated = 2 * 32, 2 * 32 + 2 * 16, 2 * 96
    inputs = 32 + 32 + 32 + 96
    numbers = 2 + 2  # of the norms, and of the heads
    assert kept_by(LLAMA, 4, 4, None) == 4 * (norms + attention + gated + inputs + numbers)
    assert kept_by(LLAMA, 2, 4, None) == 4 * norms + 2 * (attention + gated + inputs) + 4 * numbers
    # rank numbers behind each of the adapters' first matrices; under autocast those have seven inputs of their own
    assert kept_by(LLAMA, 4, 4, 5) - kept_by(LLAMA, 4, 4, None) == 4 * 7 * 5
    adapters = 3 * 32 + 32 + 2 * 32 + 96 + 7 * 5
    assert kept_by(LLAMA, 2, 4, 5) - kept_by(LLAMA, 2, 4, None) == 2 * (adapters - inputs)


def test_checkpointing_keeps_inputs_and_one_layer(tmp_path: Path) -> None:
    model = on_meta("llama", hidden_size=32, layers=4)
    shape, layer = decoder_shape(model), kept_by(LLAMA, 4, 4, None)
    last = 4 * 32

    def activations(**settings: Any) -> float:
        return memory_of(model, shape, arguments(tmp_path, **settings), 10, 4, None).activations

    assert activations() == 10 * (4 * layer + last)
    assert activations(activation_checkpointing=True) == 10 * (4 * 4 * 32 + layer + last)
    half = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 2}}
    assert activations(**half) == 10 * (2 * layer + 2 * 4 * 32 + layer + last)


def test_the_head_takes_a_chunk_whatever_the_vocabulary(tmp_path: Path) -> None:
    model, args = on_meta("llama", hidden_size=32, layers=1), arguments(tmp_path)
    shape = decoder_shape(model)
    few = memory_of(model, shape, args, 10, 4, None).head
    assert few == 4 * (32 * 8 + 300 * 32 + 4 * 300)
    large = replace(shape, vocab=1 << 18)
    many, more = (memory_of(model, large, args, 10, scored, None).head for scored in (10_000, 20_000))
    # beyond a chunk, a scored token costs its hidden state and that one's gradient
    assert more - many == 10_000 * 32 * 8
    pairs = memory_of(model, shape, arguments(tmp_path, PreferenceConfig), 10, 4, None).head
    assert pairs == 4 * (32 * 8 + 300 * 32)


def test_peak_by_hand() -> None:
    one = Memory(10, 1, 20, 30, 5, 2, accumulates=False)
    assert one.peak == 10 + 30 + 20  # gradients come as activations go
    assert replace(one, activations=50).peak == 10 + 30 + 53
    assert replace(one, accumulates=True).peak == 10 + 30 + 20 + 8
    pieces = one.shared_out(2, gathered=3)
    assert (pieces.weights, pieces.gradients, pieces.optimizer, pieces.activations) == (8, 10, 15, 5)


def kept_when_it_runs(model: Any, batch: Any, mixed: bool) -> int:
    """Bytes that autograd keeps of a forward, but for the model's own parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # a freed one's address would be another's
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext(),
    ):
        token_losses(model, batch, lambda logps: -logps)
    return sum(kept.values())


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("rank", [None, 8], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3"])
def test_activations_are_what_a_model_keeps(
    family: str, rank: int | None, mixed: bool, tmp_path: Path
) -> None:
    """Within a tenth: what is kept beside the layers (positions, indices, scored states) is not counted.

    Nor is what the last layer spares by skipping what is not read of it: the estimate is of all layers whole.
    """
    options: dict[str, Any] = {"sliding_window": 512} if family == "gemma3" else {}
    dtype = torch.bfloat16 if mixed and rank else torch.float32
    model: Any = tiny_model(family, 300, hidden_size=128, layers=4, dtype=dtype, **options)
    shape = decoder_shape(model)
    if rank:
        model = attach_adapter(model, lora_config(model, rank=rank))
    install_logprob_forward(model)
    generator = torch.Generator().manual_seed(0)
    examples = [
        {
            "input_ids": torch.randint(300, (201,), generator=generator).tolist(),
            "completion_mask": [False] * 151 + [True] * 50,
            "row_index": 0,
        }
        for _ in range(3)
    ]
    batch = SFTCollator(0, padding_free=True)(examples)
    del batch["read_index"]
    found = memory_of(model, shape, arguments(tmp_path, bf16=mixed), 600, 150, rank)
    measured = kept_when_it_runs(model, batch, mixed)
    assert found.activations + found.casts == pytest.approx(measured, rel=0.1)
