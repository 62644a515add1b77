"""Rows as supervised fine-tuning takes them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from holdfast.capability.demonstrations import RowSettings, take_in_demonstrations
from holdfast.demo.world import preference_rows
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
