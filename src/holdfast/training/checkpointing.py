"""A Trainer whose checkpoints are whole, verified and free of pickle, and whose resumed run is the run it would have
been.

    checkpoint-200/
        model.safetensors, config.json, ...     what `from_pretrained` loads; of an adapter, what PEFT loads
        optimizer.json, optimizer.safetensors   by parameter name, whole
        progress.json, progress.safetensors     scheduler, gradient scaler, sums not yet logged, and the random
                                                number generators of each process
        trainer_state.json                      steps, log history, callbacks
        fingerprint.json                        what a resumed run may not change
        manifest.json                           the checksums of all these

The main process alone writes and reads them. What processes share out (FSDP 2) is gathered and spread again, so a
checkpoint does not know how many processes wrote it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, TrainOutput

from holdfast.errors import CheckpointError, ConfigError, Interrupted
from holdfast.ranks import once
from holdfast.training.epochs import EpochTrainer
from holdfast.training.fingerprint import fingerprint, write_fingerprint
from holdfast.training.finite import nonfinite_names
from holdfast.training.interruption import Interruption
from holdfast.training.manifest import read_manifest
from holdfast.training.optimizer_state import (
    gather_optimizer,
    moments_saved,
    parameter_names,
    spread_optimizer,
)
from holdfast.training.processes import each_process
from holdfast.training.rng_state import derive_rng, devices_of, restore_rng, rng_state
from holdfast.training.run_folder import RunFolder, require_verified
from holdfast.training.state_files import load_state, save_state
from holdfast.training.weights_file import (
    gather_weights,
    own_weights,
    read_weights,
    require_saved,
    write_weights,
)

logger = logging.getLogger(__name__)

TRAINER_STATE, OPTIMIZER, PROGRESS = "trainer_state.json", "optimizer", "progress"


class _AtTrainBegin(TrainerCallback):
    """Calls the trainer back when it has reset its sums."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the sums back what they held."""
        self._trainer.begin_sums()


class ResumableTrainer(EpochTrainer):
    """Trainer with checkpoints of its own kind. A subclass says what else a checkpoint must hold of it."""

    objective: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.folder = RunFolder(Path(self.args.output_dir))
        self._fields: dict[str, Any] | None = None  # the run's fingerprint
        self._resumed: dict[str, Any] | None = None  # `progress` of the checkpoint
        self._rng_waits = False
        self.add_callback(_AtTrainBegin(self))

    # ---- what a checkpoint holds besides weights and optimizer

    def run_state(self) -> dict[str, Any]:
        """Of the run: the same in every process."""
        return {
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "loss_sum": self._total_loss_scalar,
            "step_last_logged": self._globalstep_last_logged,
        }

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Give back what `run_state` took; scheduler and scaler are back already."""
        self._total_loss_scalar = state["loss_sum"]
        self._globalstep_last_logged = state["step_last_logged"]

    def process_state(self) -> dict[str, Any]:
        """Of each process."""
        return {"loss_since_log": self._tr_loss.detach().cpu()}

    def load_process_state(self, states: list[dict[str, Any]]) -> None:
        """Give back what `process_state` took in all processes of the run that saved, whose number may be another."""
        losses = torch.stack([state["loss_since_log"] for state in states])
        same = len(states) == self.args.world_size
        loss = losses[self.args.process_index] if same else losses.mean()
        self._tr_loss = loss.to(self.args.device)

    def begin_sums(self) -> None:
        """Training begins: give back what had been summed up when the checkpoint was written."""
        if self._resumed is not None:
            self.load_run_state(self._resumed)
            self.load_process_state(self._resumed["processes"])

    def steps_taken(self) -> int:
        """Over how many steps the mean loss of training is one."""
        return int(self.state.global_step)

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
            _trainer_state(checkpoint)
            self.folder.store.preflight(read_manifest(checkpoint).bytes)
        self.folder.set_course(checkpoint)
        return checkpoint

    def _fingerprint(self) -> dict[str, Any]:
        processes, precision = self.accelerator.num_processes, str(self.accelerator.mixed_precision)
        rows = self.train_dataset
        return fingerprint(self.args, self._own_model(), self.objective, rows, processes, precision)

    def _expected_bytes(self) -> int:
        """The size of a checkpoint, from below: the weights, and the optimizer's moments of what is trained."""
        model = self._own_model()
        weights = sum(tensor.numel() * tensor.element_size() for tensor in own_weights(model).values())
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        return int(weights) + moments_saved(self.args) * trained

    def _why_no_checkpoints(self) -> str | None:
        """Why this run cannot write checkpoints; None where it can."""
        if self.is_deepspeed_enabled:
            return "DeepSpeed writes its state as pickles"
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            return "FSDP 1 does not keep the optimizer's state by parameter"
        return None

    def _require_supported(self, why_not: str | None, resuming: bool) -> None:
        """Refuse what checkpoints cannot follow, before anything is trained."""
        if why_not is not None:
            raise ConfigError(
                f"{why_not}: use FSDP 2 (`fsdp_config: {{version: 2}}`), or set save_strategy: no"
            )
        if self.args.save_on_each_node:
            raise ConfigError("save_on_each_node: the first process alone writes checkpoints; leave it out")
        if resuming and self.args.ignore_data_skip:
            raise ConfigError("ignore_data_skip: a resumed run would train on rows again; leave it out")
        once(lambda: require_saved(self._own_model()))

    # ---- save

    def save_step(self) -> None:
        """Write a checkpoint and publish it, or leave those before as they are.

        Raises:
            CheckpointError: a number is not finite, or the disk refuses.
        """
        self.store_flos()
        step, own, fields = int(self.state.global_step), self._own_model(), self._fields
        assert fields is not None
        weights = gather_weights(own)
        optimizer: dict[str, Any] | None = None
        processes: list[dict[str, Any]] = []
        if not self.args.save_only_model:
            optimizer = gather_optimizer(self._inner_optimizer(), own)
            devices = devices_of(own, self.args.device)
            processes = each_process(self.process_state() | {"rng": rng_state(devices)})
        self._note_best()

        def write(folder: Path) -> None:
            write_weights(own, weights, folder)
            self.processing_class.save_pretrained(folder)
            if optimizer is not None:
                save_state(optimizer, folder / OPTIMIZER)
                save_state(self.run_state() | {"processes": processes}, folder / PROGRESS)
            self._write_trainer_state(folder)
            write_fingerprint(fields, folder)

        def publish() -> None:
            if (
                self.folder.hold()
            ):  # not held so far: no checkpoints were to be saved, and those there are another run's
                self.folder.set_course(None)
            require_finite(weights, optimizer)
            self.folder.store.save(step, write)
            best = self.state.best_model_checkpoint
            self.folder.store.rotate(self.args.save_total_limit or None, [Path(best)] if best else [])

        once(publish)

    def _note_best(self) -> None:
        """Where the best checkpoint is, by the name that it has once published."""
        if best := self.state.best_global_step:
            path = self.folder.path / f"checkpoint-{best}"
            if best == self.state.global_step or path.is_dir():
                self.state.best_model_checkpoint = str(path)

    def _write_trainer_state(self, folder: Path) -> None:
        """Write the Trainer's state and its callbacks', as they are now."""
        states: dict[str, Any] = {}
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, []).append(callback.state())
        self.state.stateful_callbacks = states
        # The Trainer would go on with the micro-batches of the run that saved, whatever they are to be now.
        found, self.state.train_batch_size = self.state.train_batch_size, None
        self.state.save_to_json(str(folder / TRAINER_STATE))
        self.state.train_batch_size = found

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights as a checkpoint has them, and the tokenizer, into a folder; no pickle."""
        folder, own = Path(output_dir or self.args.output_dir), self._own_model()
        weights = gather_weights(own)

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            write_weights(own, weights, folder)
            self.processing_class.save_pretrained(folder)

        once(write)

    def _own_model(self) -> Any:
        """The model without what wraps it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _inner_optimizer(self) -> torch.optim.Optimizer:
        """The one that steps."""
        inner: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        assert isinstance(inner, torch.optim.Optimizer)
        return inner

    # ---- load

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; an optimizer whose state cannot be saved is named before the first step."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.args.save_strategy != SaveStrategy.NO and not self.args.save_only_model:
            parameter_names(self._inner_optimizer(), self._own_model())
        return prepared

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
        self.state = _trainer_state(Path(resume_from_checkpoint))
        self.state.compute_steps(self.args, max_steps)
        self.state.init_training_references(self, max_steps, num_train_epochs, trial)
        if best := self.state.best_model_checkpoint:
            path = self.folder.path / Path(best).name  # the folder may have another name by now
            self.state.best_model_checkpoint = str(path) if path.is_dir() else None
            if not path.is_dir():
                logger.warning("the best checkpoint so far, '%s', is not there any more", path)
        self._load_callback_state()
        epochs, steps = divmod(self.state.global_step, num_update_steps_per_epoch)
        return epochs, steps * self.args.gradient_accumulation_steps

    def _load_callback_state(self) -> None:
        """Give each callback the attributes that it had; its settings are those of now."""
        states = {name: list(saved) for name, saved in self.state.stateful_callbacks.items()}
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState) and (saved := states.get(type(callback).__name__)):
                for name, value in saved.pop(0)["attributes"].items():
                    setattr(callback, name, value)

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's; the mean loss of training is the whole run's, not this call's."""
        if "train_loss" in logs:
            steps = self.steps_taken()
            logs["train_loss"] = self._total_loss_scalar / steps if steps > 0 else math.nan
        super().log(logs, start_time)


def _trainer_state(checkpoint: Path) -> TrainerState:
    """The Trainer's state in a checkpoint.

    Raises:
        CheckpointError: it holds none.
    """
    path = checkpoint / TRAINER_STATE
    try:
        return TrainerState.load_from_json(str(path))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is not the state of a trainer: {error}") from error


def require_finite(weights: Mapping[str, Tensor], optimizer: Mapping[str, Any] | None) -> None:
    """See that a checkpoint will hold no NaN and no infinity.

    Raises:
        CheckpointError: it would; the message names the first places.
    """
    numbers = dict(weights)
    for name, state in ({} if optimizer is None else optimizer["state"]).items():
        numbers |= {f"{key} of {name}": value for key, value in state.items() if isinstance(value, Tensor)}
    if bad := nonfinite_names(numbers):
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise CheckpointError(
            f"NaN or infinity in {', '.join(bad[:3])}{more}: no checkpoint is written, and those before stand. Go on "
            "from one of them with a lower learning rate (`resume_from_checkpoint`)"
        )
