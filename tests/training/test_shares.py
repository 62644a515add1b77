"""Rows shared out among processes: by hand, for any numbers, and the batch of a process that gets none."""

from __future__ import annotations

import pickle
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from holdfast import PreferenceConfig, PreferenceTrainer, SFTConfig, SFTTrainer
from holdfast.data.collate import PairCollator, SFTCollator
from holdfast.objectives.registry import list_objectives
from holdfast.training.shares import INPUTS, EvenWithoutRows, Shares, emptied
from tests.training.conftest import rows


def shares(count: int, size: int, processes: int, drop_last: bool = False) -> list[list[list[int]]]:
    order = list(reversed(range(count)))
    return [list(Shares(order, size, processes, rank, drop_last)) for rank in range(processes)]  # type: ignore[arg-type]


def test_by_hand() -> None:
    # ten rows, 2 x 2 at a time; the two that are left go one to each
    assert shares(10, 2, 2) == [[[9, 8], [5, 4], [1]], [[7, 6], [3, 2], [0]]]
    # nine: one is left, and the first process has none for its last micro-batch
    assert shares(9, 2, 2) == [[[8, 7], [4, 3], []], [[6, 5], [2, 1], [0]]]
    assert shares(9, 2, 2, drop_last=True) == [[[8, 7], [4, 3]], [[6, 5], [2, 1]]]
    assert shares(1, 4, 3) == [[[]], [[]], [[0]]]
    assert shares(7, 4, 2) == [[[6, 5, 4]], [[3, 2, 1, 0]]]
    assert shares(0, 4, 2) == [[], []]


@given(count=st.integers(0, 60), size=st.integers(1, 5), processes=st.integers(1, 5), drop_last=st.booleans())
def test_together_they_are_one_process(count: int, size: int, processes: int, drop_last: bool) -> None:
    own = shares(count, size, processes, drop_last)
    whole = list(BatchSampler(reversed(range(count)), size * processes, drop_last))  # type: ignore[call-overload]
    assert [list(chain(*parts)) for parts in zip(*own, strict=True)] == whole
    for rank, batches in enumerate(own):
        assert len(Shares(range(count), size, processes, rank, drop_last)) == len(batches)  # type: ignore[arg-type]
        assert all(len(batch) <= size for batch in batches)
    for parts in zip(*own, strict=True):
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


FORMS = [(True, True), (True, False), (False, True), (False, False)]


@pytest.mark.parametrize(("shared_prefix", "padding_free"), FORMS)
def test_a_batch_of_no_rows(shared_prefix: bool, padding_free: bool) -> None:
    row = {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5], "row_index": 7}
    row |= {"reference_chosen": -1.0, "reference_rejected": -2.0}
    plain = PairCollator(0, shared_prefix, padding_free)
    collator = pickle.loads(pickle.dumps(EvenWithoutRows(plain, row)))  # workers are sent it
    full, empty = collator([row, row]), collator([])
    assert full["row_index"].tolist() == [7, 7]
    assert full.keys() == empty.keys() == plain([row]).keys()
    assert torch.equal(empty["input_ids"], plain([row])["input_ids"])
    assert empty["num_tokens"].tolist() == [0]
    assert {name for name, value in empty.items() if len(value) == 0} == (
        empty.keys() - INPUTS - {"num_tokens"}
    )


def test_every_objective_takes_no_rows(model_of: Any, tokenizer: Any, arguments: dict[str, Any]) -> None:
    """A process without rows runs the model all the same: its loss and its gradients are 0, and it counts nothing."""
    for name in list_objectives():
        is_pair = name in list_objectives("pair")
        config = PreferenceConfig if is_pair else SFTConfig
        trainer_class: Any = PreferenceTrainer if is_pair else SFTTrainer
        trainer = trainer_class(
            model=model_of(hidden_size=32),
            args=config(objective=name, **arguments),
            train_dataset=rows(4),
            processing_class=tokenizer,
        )
        loader = DataLoader(
            trainer.train_dataset, sampler=SequentialSampler(range(4)), collate_fn=trainer.data_collator
        )
        batch = emptied(next(iter(loader)))
        counts = trainer.count(batch)
        assert counts.tolist() == [0] * len(counts), name
        micro = trainer.measure(trainer.model, batch, torch.tensor([8.0, 40.0]))
        assert micro.loss.item() == 0, name
        assert micro.kept.item() == 0, name
        assert all(total.item() == 0 for total, _ in micro.metrics.values()), name
        micro.loss.backward()
        for own, parameter in trainer.model.named_parameters():
            assert parameter.grad is not None, (name, own)
            assert not parameter.grad.any(), (name, own)


def test_supervised_collator_of_no_rows() -> None:
    row = {"input_ids": [1, 2, 3], "completion_mask": [False, True, True], "row_index": 0}
    batch = EvenWithoutRows(SFTCollator(0, padding_free=True), row)([])
    assert batch["input_ids"].tolist() == [[1, 2]]  # the last token predicts nothing
    assert len(batch["target_ids"]) == len(batch["score_index"]) == 0
