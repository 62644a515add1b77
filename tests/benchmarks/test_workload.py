"""Rows and models of the step benchmarks, and what a step asks for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import preference_step
import sft_step
import workload
from stepping import training_operations

CASE = {
    "model": workload.chosen_shape("toy", None),
    "dtype": "float32",
    "max_length": 64,
    "attention": "sdpa",
    "device": "cpu",
    "seed": 3,
    "lora": False,
}


def test_made_up_rows_depend_on_the_seed_alone_and_end_with_the_user() -> None:
    shape = workload.SHAPES["short"]
    source, rows = workload.read_rows("synthetic", shape, 300, seed=1)
    assert source == "synthetic"
    assert (source, rows) == workload.read_rows("synthetic", shape, 300, seed=1)
    assert rows != workload.read_rows("synthetic", shape, 300, seed=2)[1]
    assert all([m["role"] for m in row["prompt"]] == ["user", "assistant", "user"] for row in rows)
    mean = sum(len(row["chosen"].split()) for row in rows) / len(rows)
    assert mean == pytest.approx(shape.means[1], rel=0.2)


def test_selected_rows_have_the_shape_and_start_over() -> None:
    def tokenizer(text: str) -> dict[str, list[str]]:
        return {"input_ids": text.split()}

    def row(answer: str, turns: int = 2, rejected: str = "n o") -> dict[str, object]:
        return {"prompt": [{}] * turns, "chosen": answer, "rejected": rejected}

    shape = workload.DataShape(max_length=8, pairs=2, turns=2, longest_answer=3, means=(1, 1, 1))
    fits, also = row("a b"), row("c d e")
    # too long; too few turns; the same in all that a cut leaves for sure
    rows = [row("a b c d"), fits, row("a", turns=1), also, row("n o x", rejected="n o x")]
    assert workload.select(rows, tokenizer, shape, 3) == [fits, also, fits]
    with pytest.raises(SystemExit, match="none of 1 rows has the shape"):
        workload.select(rows[:1], tokenizer, shape, 1)


def test_the_same_case_gives_the_same_weights_and_lora_trains_little() -> None:
    first, second = (workload.build_model(CASE) for _ in range(2))
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    adapted = workload.build_model(CASE | {"lora": True})
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)


def test_training_operations_by_hand() -> None:
    shape = CASE["model"]
    model = workload.build_model(CASE)
    hidden, inner, width = shape["hidden"], shape["feed_forward"], shape["heads"] * shape["head_dim"]
    narrow = shape["key_value_heads"] * shape["head_dim"]
    body = shape["layers"] * (2 * hidden * width + 2 * hidden * narrow + 3 * hidden * inner)
    head = hidden * shape["vocab"]
    assert training_operations(model, 10, 4) == 6 * body * 10 + 6 * head * 4
    model.requires_grad_(False)
    assert training_operations(model, 10, 4) == 4 * body * 10 + 4 * head * 4


def test_work_of_pairs_by_hand() -> None:
    lengths = ((3, 2, 4), (5, 1, 1), (2, 2, 2))
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    tokens = [{key: [0] * n for key, n in zip(keys, triple, strict=True)} for triple in lengths]
    # plain reads the prompt twice; the body needs it once, and no completion's last token
    assert preference_step.work(None, tokens, {"pairs": 2}) == [(12 + 12, 7 + 5, 6 + 2), (8, 4, 4)]


def test_work_of_demonstrations_by_hand() -> None:
    tokens = [
        {"input_ids": [0] * n, "completion_mask": [False] * (n - scored) + [True] * scored}
        for n, scored in ((6, 2), (4, 3))
    ]
    trainer = SimpleNamespace(args=SimpleNamespace(per_device_train_batch_size=2))
    assert sft_step.work(trainer, tokens, {"warmup": 1, "steps": 1}) == 2 * [(10, 8, 5)]


def test_work_of_packed_rows_counts_the_packed_rows() -> None:
    packed = [{"input_ids": [0] * 9, "labels": [-100, 1, 1, -100, -100, 1, 1, 1, 1]}]
    trainer = SimpleNamespace(
        args=SimpleNamespace(per_device_train_batch_size=1, packing=True), train_dataset=packed
    )
    assert sft_step.work(trainer, [], {"warmup": 1, "steps": 1}) == 2 * [(9, 8, 6)]
