"""Rows grouped by length: what is counted, which rows come together, and that processes get even shares."""

from __future__ import annotations

from itertools import islice
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import PreferenceConfig, PreferenceTrainer, SFTConfig, SFTTrainer
from holdfast.errors import ConfigError
from holdfast.training import row_lengths as module
from holdfast.training.row_lengths import grouped_by_length, row_lengths
from holdfast.training.shares import Shares

from .conftest import rows


def pairs(lengths: list[tuple[int, int, int]]) -> datasets.Dataset:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return datasets.Dataset.from_list(
        [
            {name: [7] * length for name, length in zip(names, triple, strict=True)}
            | {"row_id": "a", "row_index": n}
            for n, triple in enumerate(lengths)
        ]
    )


def test_by_hand() -> None:
    assert row_lengths(pairs([(3, 1, 2), (1, 1, 1), (10, 0, 5)])) == [6, 3, 15]
    demonstrations = [{"input_ids": [1] * n, "completion_mask": [True] * n, "row_id": "a"} for n in (4, 2)]
    assert row_lengths(datasets.Dataset.from_list(demonstrations)) == [4, 2]


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_rows_that_were_selected_have_their_own_lengths(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    dataset = pairs([(n + 1, 1, 1) for n in range(10)])
    assert row_lengths(dataset.select([9, 0, 4])) == [12, 3, 7]
    assert row_lengths(dataset) == list(range(3, 13))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=200), rows_a_step=st.integers(1, 9))
def test_every_row_once_and_the_longest_first(lengths: list[int], rows_a_step: int) -> None:
    sampler = grouped_by_length(pairs([(n, 1, 1) for n in lengths]), rows_a_step)
    sampler.generator = torch.Generator().manual_seed(0)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert lengths[order[0]] == max(lengths)


def spread(batches: list[list[int]], lengths: list[int]) -> float:
    """The mean range of lengths within a batch."""
    return sum(max(own) - min(own) for own in ([lengths[n] for n in b] for b in batches)) / len(batches)


def test_shares_of_a_step_are_alike() -> None:
    """Two processes, four rows each a step: the slower one has six percent more than the mean to do, not twenty."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 2000, (800,), generator=draw).tolist()
    sampler = grouped_by_length(pairs([(n, 1, 1) for n in lengths]), 8)
    sampler.generator = torch.Generator().manual_seed(1)
    order = list(sampler)
    shuffled = torch.randperm(800, generator=draw).tolist()

    def excess(order: list[int]) -> float:
        """By how much the slower process's tokens exceed the mean, on average."""
        first, second = (list(Shares(order, 4, 2, rank)) for rank in (0, 1))  # type: ignore[arg-type]
        steps = [[sum(lengths[n] for n in own) for own in step] for step in zip(first, second, strict=True)]
        return sum(2 * max(step) / sum(step) - 1 for step in steps) / len(steps)

    assert excess(order) < 0.06 < 0.15 < excess(shuffled)
    grouped, mixed = ([own[n : n + 8] for n in range(0, 800, 8)] for own in (order, shuffled))
    assert spread(grouped, lengths) < 0.2 * spread(mixed, lengths)


@pytest.mark.parametrize("stage", ["sft", "align"])
def test_both_trainers_group_their_rows(
    stage: str, model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    trainer_class, config_class = {
        "sft": (SFTTrainer, SFTConfig),
        "align": (PreferenceTrainer, PreferenceConfig),
    }[stage]
    options = arguments | {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2}

    def trainer_with(**changes: Any) -> Any:
        args: Any = config_class(**(options | {"gradient_accumulation_steps": 2, "max_steps": 3} | changes))
        return trainer_class(model_of(), args, rows(96), rows(5), processing_class=tokenizer)

    trainer = trainer_with()
    lengths = row_lengths(trainer.train_dataset)
    batches = [b["row_index"].tolist() for b in islice(trainer.get_train_dataloader(), 4)]
    assert max(lengths) in [lengths[n] for n in batches[0]]
    assert spread(batches, lengths) < 0.5 * spread([[n, n + 1] for n in range(0, 96, 2)], lengths)
    # the global batch has the same rows however it is cut
    other = trainer_with(per_device_train_batch_size=4, gradient_accumulation_steps=1)
    whole = [b["row_index"].tolist() for b in islice(other.get_train_dataloader(), 2)]
    assert whole == [[*batches[0], *batches[1]], [*batches[2], *batches[3]]]
    # held-out rows stay in their order, and training runs
    assert [n for b in trainer.get_eval_dataloader() for n in b["row_index"].tolist()] == list(range(5))
    trainer.train()
    assert trainer.state.global_step == 3


def test_batches_of_another_kind_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match="train_sampling_strategy must be one of random, sequential, group_by_length"
    ):
        PreferenceConfig(**(arguments | {"train_sampling_strategy": "batch_rebalance"}))
