"""A Trainer whose resumed run is the run it would have been.

What it goes on from is `holdfast.training.saving`'s; each thing that is saved there is given back here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy, TrainOutput

from holdfast.errors import CheckpointError, Interrupted
from holdfast.ranks import once
from holdfast.training.interruption import Interruption
from holdfast.training.manifest import read_manifest
from holdfast.training.optimizer_state import spread_optimizer
from holdfast.training.rng_state import derive_rng, devices_of, restore_rng
from holdfast.training.run_folder import require_verified
from holdfast.training.saving import OPTIMIZER, PROGRESS, SavingTrainer
from holdfast.training.state_files import load_state
from holdfast.training.trainer_state import read_trainer_state, restore_callbacks
from holdfast.training.weights_file import read_weights

logger = logging.getLogger(__name__)


class _AtTrainBegin(TrainerCallback):
    """Calls the trainer back when it has reset its sums."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the sums back what they held."""
        self._trainer.begin_sums()


class ResumableTrainer(SavingTrainer):
    """Trainer that goes on from its checkpoints. A subclass gives back what else it had them hold."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._resumed: dict[str, Any] | None = None  # `progress` of the checkpoint
        self._rng_waits = False
        self.add_callback(_AtTrainBegin(self))

    # ---- train

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: `True`: the newest checkpoint of the output folder that verifies. `"auto"`:
                likewise, and from the start where there is none. A folder: that one; checkpoints of later steps are
                moved aside. None: from the start; checkpoints that are there are moved aside.

        Raises:
            CheckpointError: no checkpoint to go on from, one of another run, or a folder that cannot hold one.
            FolderInUse: another run holds the output folder.
            ConfigError: a setting that checkpoints cannot follow.
            Interrupted: a signal ended training; the checkpoint that it names is there.
        """
        args, resume = self.args, resume_from_checkpoint or None
        why_not, checkpoint = self._why_no_checkpoints(), None
        with ExitStack() as stack:
            stack.callback(self.folder.release)
            if why_not is None and self._fields is None:
                self._fields = self._fingerprint()  # of the weights that it starts from
            if why_not is not None and resume == "auto" and not once(self.folder.store.checkpoints):
                resume = None  # there cannot be one
            if args.save_strategy != SaveStrategy.NO or resume is not None:
                self._require_supported(why_not, resuming=resume is not None)
                checkpoint = once(lambda: self._begin(resume))
            interruption = stack.enter_context(Interruption(saves=why_not is None))
            self.add_callback(interruption)
            stack.callback(self.remove_callback, interruption)
            stack.callback(setattr, args, "eval_on_start", args.eval_on_start)
            stack.callback(setattr, self, "is_in_train", False)
            args.eval_on_start = args.eval_on_start and checkpoint is None  # it has been done
            self._resumed, self._rng_waits = None, checkpoint is not None
            self._save_owed, self._step_seen = False, -1
            path = None if checkpoint is None else str(checkpoint)
            try:
                return super().train(path, trial, ignore_keys_for_eval)
            except Interrupted:
                self.callback_handler.on_train_end(args, self.state, self.control)  # reports are closed
                raise

    def _begin(self, resume: str | Path | bool | None) -> Path | None:
        """Take the output folder, and find the checkpoint to go on from."""
        assert self._fields is not None
        self.folder.hold()
        checkpoint = self.folder.find(resume, self._fields)
        if checkpoint is None:
            self.folder.store.preflight(self._expected_bytes())
        else:
            if not (checkpoint / f"{PROGRESS}.json").is_file():
                raise CheckpointError(
                    f"'{checkpoint}' holds weights alone (save_only_model): begin anew, with it as the model"
                )
            read_trainer_state(checkpoint)  # before anything is changed
            self.folder.store.preflight(read_manifest(checkpoint).bytes)
        self.folder.set_course(checkpoint)
        return checkpoint

    # ---- load

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """The Trainer's state from the start, or the checkpoint's; how often to log and save is as it is set now."""
        start: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, None, trial
        )
        if resume_from_checkpoint is None:
            return start
        self.state = read_trainer_state(Path(resume_from_checkpoint))
        self.state.compute_steps(self.args, max_steps)
        self.state.init_training_references(self, max_steps, num_train_epochs, trial)
        if best := self.state.best_model_checkpoint:
            path = self.folder.path / Path(best).name  # the folder may have another name by now
            self.state.best_model_checkpoint = str(path) if path.is_dir() else None
            if not path.is_dir():
                logger.warning("the best checkpoint so far, '%s', is not there any more", path)
        restore_callbacks(self.callback_handler.callbacks, self.state)
        epochs, steps = divmod(self.state.global_step, num_update_steps_per_epoch)
        return epochs, steps * self.args.gradient_accumulation_steps

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        read_weights(self._own_model(), Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Optimizer and scheduler as they were; the rest of `progress` is kept until it can be given back."""
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        self._resumed = once(lambda: load_state(folder / PROGRESS))
        spread_optimizer(lambda: load_state(folder / OPTIMIZER), self._inner_optimizer(), self._own_model())
        self.lr_scheduler.load_state_dict(self._resumed["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self._resumed is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self._resumed["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The random number generators as they were; derived ones where the processes are not those that saved."""
        assert self._resumed is not None
        self._rng_waits = False
        processes, devices = self._resumed["processes"], devices_of(self.model, self.args.device)
        rank, world = self.args.process_index, self.args.world_size
        if len(processes) == world and len(processes[rank]["rng"]["devices"]) == len(devices):
            restore_rng(processes[rank]["rng"], devices)
            return
        if rank == 0:
            logger.warning(
                "the checkpoint was written by %d processes, and these are %d, or they compute on other devices: "
                "weights, optimizer and the order of the rows are the same, but dropout draws other numbers",
                len(processes),
                world,
            )
        derive_rng(self.args.seed, int(self.state.global_step), rank, world)

    def _load_best_model(self) -> None:
        """Give the model the best checkpoint's weights."""
        folder = Path(str(self.state.best_model_checkpoint))
        once(lambda: require_verified(folder))
        read_weights(self._own_model(), folder)

    # ---- sums

    def begin_sums(self) -> None:
        """Training begins: give back what had been summed up when the checkpoint was written."""
        if self._resumed is not None:
            self.load_run_state(self._resumed)
            self.load_process_state(self._resumed["processes"])

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Give back what `run_state` took; scheduler and scaler are back already."""
        self._total_loss_scalar = state["loss_sum"]
        self._globalstep_last_logged = state["step_last_logged"]

    def load_process_state(self, states: list[dict[str, Any]]) -> None:
        """Give back what `process_state` took in all processes of the run that saved, whose number may be another."""
        losses = torch.stack([state["loss_since_log"] for state in states])
        same = len(states) == self.args.world_size
        loss = losses[self.args.process_index] if same else losses.mean()
        self._tr_loss = loss.to(self.args.device)

    def steps_taken(self) -> int:
        """Over how many steps the mean loss of training is one."""
        return int(self.state.global_step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's; the mean loss of training is the whole run's, not this call's."""
        if "train_loss" in logs:
            steps = self.steps_taken()
            logs["train_loss"] = self._total_loss_scalar / steps if steps > 0 else math.nan
        super().log(logs, start_time)

    # ---- the end

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As the Trainer's; which checkpoints stay is the store's to say."""
        if self._rng_waits:  # there was no step to take
            self._load_rng_state(None)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            output: TrainOutput = super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        return output._replace(training_loss=output.metrics["train_loss"])
