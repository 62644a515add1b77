"""`trainer_state.json`: what is written is what is read back, and callbacks hold what they held."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import EarlyStoppingCallback, TrainerState

from holdfast.errors import CheckpointError
from holdfast.training.trainer_state import read_trainer_state, restore_callbacks, write_trainer_state


def waiting(patience: int, counted: int) -> EarlyStoppingCallback:
    callback = EarlyStoppingCallback(patience)
    callback.early_stopping_patience_counter = counted
    return callback


def test_steps_and_callbacks_go_on_where_they_stood(tmp_path: Path) -> None:
    state = TrainerState(global_step=4, train_batch_size=8, log_history=[{"loss": 0.5, "step": 4}])
    write_trainer_state(state, [waiting(3, 1), waiting(3, 2)], tmp_path)
    assert state.train_batch_size == 8
    saved = read_trainer_state(tmp_path)
    assert (saved.global_step, saved.log_history) == (4, [{"loss": 0.5, "step": 4}])
    assert saved.train_batch_size is None  # the resumed run has its own
    again = [waiting(5, 0), waiting(5, 0), waiting(5, 0)]
    restore_callbacks(again, saved)
    # two of a class in their order; a third is new, and the patience is what it is set to now
    assert [one.early_stopping_patience_counter for one in again] == [1, 2, 0]
    assert {one.early_stopping_patience for one in again} == {5}


@pytest.mark.parametrize(
    "text", ["[", "[]", '{"no such": 1}', "[" * 100_000], ids=["cut", "list", "key", "deep"]
)
def test_anything_else_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"trainer_state\.json' is not the state of a trainer"):
        read_trainer_state(tmp_path)


def test_a_folder_without_one_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"trainer_state\.json' is not the state of a trainer"):
        read_trainer_state(tmp_path)
