"""A Trainer whose checkpoints are whole, verified and free of pickle.

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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import SaveStrategy

from holdfast.errors import CheckpointError, ConfigError
from holdfast.ranks import once
from holdfast.training.epochs import EpochTrainer
from holdfast.training.fingerprint import fingerprint, write_fingerprint
from holdfast.training.finite import nonfinite_names
from holdfast.training.optimizer_state import gather_optimizer, moments_saved, parameter_names
from holdfast.training.processes import each_process
from holdfast.training.rng_state import devices_of, rng_state
from holdfast.training.run_folder import RunFolder
from holdfast.training.state_files import save_state
from holdfast.training.trainer_state import write_trainer_state
from holdfast.training.weights_file import gather_weights, own_weights, require_saved, write_weights

OPTIMIZER, PROGRESS = "optimizer", "progress"


class SavingTrainer(EpochTrainer):
    """Trainer with checkpoints of its own kind. A subclass says what else a checkpoint must hold of it."""

    objective: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.folder = RunFolder(Path(self.args.output_dir))
        self._fields: dict[str, Any] | None = None  # the run's fingerprint

    # ---- what a checkpoint holds besides weights and optimizer

    def run_state(self) -> dict[str, Any]:
        """Of the run: the same in every process."""
        return {
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "loss_sum": self._total_loss_scalar,
            "step_last_logged": self._globalstep_last_logged,
        }

    def process_state(self) -> dict[str, Any]:
        """Of each process."""
        return {"loss_since_log": self._tr_loss.detach().cpu()}

    # ---- which runs can have them

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

    def _expected_bytes(self) -> int:
        """The size of a checkpoint, from below: the weights, and the optimizer's moments of what is trained."""
        model = self._own_model()
        weights = sum(tensor.numel() * tensor.element_size() for tensor in own_weights(model).values())
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        return int(weights) + moments_saved(self.args) * trained

    def _fingerprint(self) -> dict[str, Any]:
        processes, precision = self.accelerator.num_processes, str(self.accelerator.mixed_precision)
        rows = self.train_dataset
        return fingerprint(self.args, self._own_model(), self.objective, rows, processes, precision)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; an optimizer whose state cannot be saved is named before the first step."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.args.save_strategy != SaveStrategy.NO and not self.args.save_only_model:
            parameter_names(self._inner_optimizer(), self._own_model())
        return prepared

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
            write_trainer_state(self.state, self.callback_handler.callbacks, folder)
            write_fingerprint(fields, folder)

        def publish() -> None:
            # Not held so far: no checkpoints were to be saved, and those that are there are another run's.
            if self.folder.hold():
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
