"""`trainer_state.json` of a checkpoint: the Trainer's steps, its log history, and what its callbacks hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from holdfast.errors import CheckpointError

TRAINER_STATE = "trainer_state.json"


def write_trainer_state(state: TrainerState, callbacks: Iterable[TrainerCallback], folder: Path) -> None:
    """Write the Trainer's state, and its callbacks' as they are now."""
    held: dict[str, list[dict[str, object]]] = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            held.setdefault(type(callback).__name__, []).append(callback.state())
    state.stateful_callbacks = held
    # The Trainer would go on with the micro-batches of the run that saved, whatever they are to be now.
    found, state.train_batch_size = state.train_batch_size, None
    state.save_to_json(str(folder / TRAINER_STATE))
    state.train_batch_size = found


def read_trainer_state(checkpoint: Path) -> TrainerState:
    """The Trainer's state in a checkpoint.

    Raises:
        CheckpointError: it holds none.
    """
    path = checkpoint / TRAINER_STATE
    try:
        return TrainerState.load_from_json(str(path))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is not the state of a trainer: {error}") from error


def restore_callbacks(callbacks: Iterable[TrainerCallback], state: TrainerState) -> None:
    """Give each callback the attributes that it had; its settings are those of now."""
    states = {name: list(saved) for name, saved in state.stateful_callbacks.items()}
    for callback in callbacks:
        if isinstance(callback, ExportableState) and (saved := states.get(type(callback).__name__)):
            for name, value in saved.pop(0)["attributes"].items():
                setattr(callback, name, value)
