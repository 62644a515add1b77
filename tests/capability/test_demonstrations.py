"""Rows as supervised fine-tuning takes them, and the sample that is probed."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from holdfast.capability.demonstrations import RowSettings, some_rows, take_in_demonstrations
from holdfast.demo.world import preference_rows, sft_rows
from holdfast.training.config import SFTConfig
from holdfast.training.preparation import prepare_sft


def test_the_tokens_are_the_trainers(tokenizer: PreTrainedTokenizerBase, tmp_path: str) -> None:
    rows = preference_rows(12, seed=0)
    own = take_in_demonstrations(rows, tokenizer, RowSettings(num_proc=1)).rows.tokens
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, dataset_num_proc=1)
    theirs = prepare_sft(rows, tokenizer, args).dataset
    for column in ("input_ids", "completion_mask"):
        assert own[column][:] == theirs[column][:]


def test_defaults_are_the_trainers() -> None:
    config, own = SFTConfig(use_cpu=True), RowSettings()
    for name in ("max_length", "on_overflow", "train_on", "append_eos", "validation", "chat_template"):
        assert getattr(own, name) == getattr(config, name)


def test_a_sample_is_seeded_and_keeps_the_order(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = take_in_demonstrations(sft_rows(40, 0), tokenizer, RowSettings(num_proc=1)).rows

    def chosen(seed: int) -> list[int]:
        numbers: list[int] = some_rows(rows, 15, seed).tokens["row_index"][:]
        return numbers

    sample = chosen(1)
    assert len(set(sample)) == 15
    assert sample == sorted(sample) == chosen(1)
    assert sample != chosen(2)


@pytest.mark.parametrize("count", [None, 40, 100])
def test_all_rows_are_no_sample(tokenizer: PreTrainedTokenizerBase, count: int | None) -> None:
    rows = take_in_demonstrations(sft_rows(40, 0), tokenizer, RowSettings(num_proc=1)).rows
    assert some_rows(rows, count, seed=0) is rows
