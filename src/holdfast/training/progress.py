"""A callback with one progress bar for training, which carries the numbers worth watching."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import TrainOutput

# Shown beside the bar, where logged: log name -> short label.
WATCHED = {
    "loss": "loss",
    "mean_logps/chosen": "chosen",
    "mean_logps/rejected": "rejected",
    "rewards/accuracies": "accuracy",
    "mean_logps/target": "target",
}


class ProgressLine(TrainerCallback):
    """Steps done, time left, and the latest of `WATCHED`; nothing else is printed."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.description,
                dynamic_ncols=True,
                leave=True,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar to the step just done."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the latest numbers."""
        if self.bar is not None and logs:
            shown = {label: f"{logs[name]:.3g}" for name, label in WATCHED.items() if name in logs}
            if shown:
                self.bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        """Close the bar, leaving it on the screen."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def train_with_progress(trainer: Trainer, description: str, resume: str | bool | None = None) -> TrainOutput:
    """`trainer.train()` behind one `ProgressLine` (none where `disable_tqdm` is set), and nothing else printed.

    Args:
        resume: `resume_from_checkpoint` of `train`.
    """
    for printing in (ProgressCallback, PrinterCallback):
        trainer.pop_callback(printing)
    line = ProgressLine(description)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(line)
    try:
        return trainer.train(resume_from_checkpoint=resume)
    finally:
        line.close()  # training may end by a signal or an error
