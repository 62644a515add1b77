"""What a checkpoint is made of, piece by piece; the whole is tested in tests/faults/test_resume*.py."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import RandomSampler
from transformers import TrainerState

import holdfast
from holdfast.errors import CheckpointError
from holdfast.models.adapters import attach_adapter, lora_config
from holdfast.models.tiny import tiny_model
from holdfast.training.epochs import EpochOrder
from holdfast.training.fingerprint import (
    require_same_run,
    rows_digest,
    weights_digest,
    write_fingerprint,
)
from holdfast.training.manifest import verify
from holdfast.training.metrics import MetricSums
from holdfast.training.metrics_file import MetricsFile
from holdfast.training.processes import each_process, spread, whole
from holdfast.training.rng_state import derive_rng, devices_of, restore_rng, rng_state
from holdfast.training.state_files import load_state, save_state
from tests.faults.runs import trainer_of

# ---- the folder


def test_a_checkpoint_folder(tmp_path: Path) -> None:
    trainer_of("sft", tmp_path / "run", lora=True, max_steps=2, save_steps=2).train()
    folder = tmp_path / "run" / "checkpoint-2"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "fingerprint.json"),
        *(
            "manifest.json",
            "optimizer.json",
            "optimizer.safetensors",
            "progress.json",
            "progress.safetensors",
        ),
        *("tokenizer.json", "tokenizer_config.json", "trainer_state.json"),
    ]
    assert verify(folder) == []
    optimizer = load_state(folder / "optimizer")
    trained = {name for group in optimizer["groups"] for name in group["params"]}
    assert optimizer["state"].keys() == trained
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight" in trained
    progress = load_state(folder / "progress")
    assert progress["scheduler"]["last_epoch"] == 2
    assert [process.keys() for process in progress["processes"]] == [{"loss_since_log", "sums", "rng"}]
    fields = json.loads((folder / "fingerprint.json").read_text())
    assert fields["global_batch_size"] == 6
    assert fields["rows.count"] == 14
    assert all(not isinstance(value, dict) or not value for value in fields.values())


def test_save_model_writes_no_pickle(tmp_path: Path) -> None:
    trainer = trainer_of("sft", tmp_path / "run", lora=False)
    trainer.save_model(str(tmp_path / "model"))
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".safetensors", ".jinja"}


def test_nothing_in_the_program_reads_or_writes_a_pickle() -> None:
    words = ("weights_only=False", "import pickle", "torch.save(", "torch.load(")
    for file in Path(holdfast.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not [word for word in words if word in text], file


# ---- order of rows


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 5))
def test_an_epochs_order_is_its_own(rows: int, seed: int, epoch: int) -> None:
    order = EpochOrder(RandomSampler(range(rows)), seed)
    order.set_epoch(epoch)
    first = list(order)
    torch.rand(1)
    assert sorted(first) == list(range(rows))
    assert list(order) == first
    assert first == torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


def test_epochs_differ() -> None:
    order = EpochOrder(RandomSampler(range(20)), 0)
    first = list(order)
    order.set_epoch(1)
    assert list(order) != first


# ---- random numbers


def test_random_numbers_go_on_where_they_stood(tmp_path: Path) -> None:
    def draw() -> tuple[Any, ...]:
        return (
            *(random.random(), random.gauss(0, 1), np.random.random(), np.random.normal()),  # noqa: NPY002
            *(torch.rand(1).item(), torch.randn(1).item()),
        )

    draw()  # an odd number of normal ones: the other half of the pair is waiting
    save_state(rng_state([]), tmp_path / "rng")
    first, second = draw(), draw()
    restore_rng(load_state(tmp_path / "rng"), [])
    assert (draw(), draw()) == (first, second)
    with pytest.raises(CheckpointError, match="random numbers of 0 accelerator devices"):
        restore_rng(load_state(tmp_path / "rng"), [torch.device("cuda", 0)])


def test_derived_random_numbers_differ_between_processes_steps_and_seeds() -> None:
    drawn = set()
    for seed, step, rank, processes in ((0, 1, 0, 2), (0, 1, 1, 2), (0, 2, 0, 2), (1, 1, 0, 2), (0, 1, 0, 4)):
        derive_rng(seed, step, rank, processes)
        drawn.add(torch.rand(1).item())
        derive_rng(seed, step, rank, processes)
        assert torch.rand(1).item() in drawn
    assert len(drawn) == 5


def test_a_cpu_has_no_devices() -> None:
    assert devices_of(torch.nn.Linear(1, 1), torch.device("cpu")) == []
    assert devices_of(torch.nn.Linear(1, 1), torch.device("cuda", 1)) == [torch.device("cuda", 1)]


# ---- one process


def test_one_process_has_what_it_has() -> None:
    assert each_process({"a": 1}) == [{"a": 1}]
    tensor = torch.arange(3.0, requires_grad=True)
    assert whole(tensor).requires_grad is False
    assert spread(tensor.detach(), tensor) is not None


# ---- sums


def test_sums_go_on_where_they_stood(tmp_path: Path) -> None:
    sums = MetricSums()
    sums.add({"loss": (torch.tensor(0.1), torch.tensor(3)), "pairs": (torch.tensor(2.0), 7)})
    save_state({"sums": sums.state_dict()}, tmp_path / "sums")
    saved = load_state(tmp_path / "sums")["sums"]
    accelerator = SimpleNamespace(reduce=lambda table, reduction: table)
    again = MetricSums.of([saved], torch.device("cpu"))
    both = MetricSums.of([saved, saved], torch.device("cpu"))
    assert MetricSums.of([], torch.device("cpu")).flush(accelerator) == {}
    expected = sums.flush(accelerator)
    assert (
        again.flush(accelerator) == expected == {"loss": (float(np.float32(0.1)), 3.0), "pairs": (2.0, 7.0)}
    )
    assert both.flush(accelerator) == {name: (2 * a, 2 * b) for name, (a, b) in expected.items()}


# ---- metrics.jsonl


def lines_after(file: Path, history: list[dict[str, Any]], stage: str = "sft") -> list[dict[str, Any]]:
    callback = MetricsFile(file, stage)
    state = TrainerState(log_history=history, is_world_process_zero=True)
    callback.on_train_begin(None, state, None)  # type: ignore[arg-type]
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_the_file_is_put_where_the_checkpoint_stands(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    own = [{"stage": "sft", "step": step, "loss": 1.0 / step} for step in (1, 2, 3)]
    other = {"stage": "align", "step": 1, "loss": 9.0}
    file.write_text("".join(json.dumps(line) + "\n" for line in (other, *own)) + '{"stage": "sft", "st')
    history = [{"loss": 1.0, "step": 1}, {"loss": 0.5, "step": 2}]
    assert lines_after(file, history) == [other, *own[:2]]
    # what a crash has cut off is back
    file.write_text(json.dumps(other) + "\n")
    assert lines_after(file, history) == [other, *own[:2]]
    file.unlink()
    assert lines_after(file, [*history, {"loss": float("nan"), "step": 3}])[-1] == {
        "stage": "sft",
        "step": 3,
        "loss": None,
    }


def test_a_stage_from_its_start_has_no_lines_yet(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"stage": "sft", "step": 1}\n{"stage": "align", "step": 1}\n')
    assert lines_after(file, []) == [{"stage": "align", "step": 1}]
    callback = MetricsFile(tmp_path / "other", "sft")
    callback.on_train_begin(
        None,  # type: ignore[arg-type]
        TrainerState(log_history=[{"step": 1}], is_world_process_zero=False),
        None,  # type: ignore[arg-type]
    )
    assert not (tmp_path / "other").exists()


# ---- fingerprint


def rows_of(*prompts: list[int]) -> datasets.Dataset:
    table = {
        "prompt_ids": list(prompts),
        "chosen_ids": [[1, 2]] * len(prompts),
        "row_index": list(range(len(prompts))),
    }
    return datasets.Dataset.from_dict(table)


def test_the_digest_of_rows_sees_tokens_order_and_boundaries() -> None:
    base = rows_of([1, 2], [3])
    assert rows_digest(base) == rows_digest(rows_of([1, 2], [3]))
    assert rows_digest(base) == rows_digest(base.add_column("reference_chosen", [0.1, 0.2]))
    assert rows_digest(base) == rows_digest(rows_of([9], [1, 2], [3]).select([1, 2]))
    others = [rows_of([3], [1, 2]), rows_of([1], [2, 3]), rows_of([1, 2, 3], []), rows_of([1, 2], [4])]
    assert len({rows_digest(rows) for rows in (base, *others)}) == 5


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.data())
def test_the_digest_of_weights_sees_every_number(data: st.DataObject) -> None:
    model = tiny_model("llama", 30, hidden_size=16)
    before = weights_digest(model)
    parameter = data.draw(st.sampled_from(list(model.parameters())))
    at = data.draw(st.integers(0, parameter.numel() - 1))
    with torch.no_grad():
        value = parameter.view(-1)[at].clone()
        parameter.view(-1)[at] = torch.nextafter(value, torch.tensor(9.0))
        assert weights_digest(model) != before
        parameter.view(-1)[at] = value
    assert weights_digest(model) == before


def test_an_adapters_base_is_what_is_frozen() -> None:
    base = tiny_model("llama", 30, hidden_size=16)
    adapted = attach_adapter(base, lora_config(base, rank=2))
    before = weights_digest(adapted)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 1
    assert weights_digest(adapted) == before
    with torch.no_grad():
        next(p for p in adapted.parameters() if not p.requires_grad).add_(1)
    assert weights_digest(adapted) != before


def test_fields_that_differ_are_listed(tmp_path: Path) -> None:
    write_fingerprint({"a": 1, "b": [1, 2], "c": "x", "gone": None}, tmp_path)
    require_same_run({"a": 1, "b": [1, 2], "c": "x", "gone": None}, tmp_path)
    with pytest.raises(CheckpointError) as refused:
        require_same_run({"a": 2, "b": [1, 2], "c": "y", "new": 0.5}, tmp_path)
    assert str(refused.value).splitlines()[1:-1] == [
        "  a: 1 in the checkpoint, 2 now",
        '  c: "x" in the checkpoint, "y" now',
        "  gone: null in the checkpoint, absent now",
        "  new: absent in the checkpoint, 0.5 now",
    ]
    (tmp_path / "fingerprint.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"fingerprint\.json' cannot be read"):
        require_same_run({}, tmp_path)
