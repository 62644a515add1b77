"""What a Trainer must do otherwise where several processes train one model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from holdfast.errors import ConfigError
from holdfast.training.sharding import blank_copy, filled, gather_state, require_exact
from holdfast.training.shares import EvenWithoutRows, share_out

PREPARED = "_is_accelerate_prepared"


class DistributedTrainer(Trainer):
    """Trainer whose processes share the rows out exactly, and can score with a model that they share out."""

    data_collator: Any
    model: Any
    optimizer: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        loading = self.args.accelerator_config
        for name in ("split_batches", "dispatch_batches"):
            if getattr(loading, name):
                raise ConfigError(
                    f"accelerator_config.{name}: rows are shared out in another way; leave it out"
                )
        self._blank: nn.Module | None = None
        if self.is_fsdp_enabled:
            require_exact(self.accelerator.state.fsdp_plugin)
        if (self.is_fsdp_enabled or self._is_zero3()) and self.accelerator.is_main_process:
            self._blank = blank_copy(self.model)

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """As the Trainer's; of several processes each gets its `Shares`."""
        processes = self.accelerator.num_processes
        if processes == 1:
            return super()._get_dataloader(dataset, *args, **kwargs)
        own = self.data_collator
        self.data_collator = EvenWithoutRows(own, dataset[0])
        try:
            loader: DataLoader[Any] = super()._get_dataloader(dataset, *args, **kwargs)
        finally:
            self.data_collator = own
        share_out(loader, processes, self.accelerator.process_index)
        return loader

    @contextmanager
    def scoring(self) -> Iterator[nn.Module]:
        """The model in evaluation mode, where it can run: before training as after it.

        FSDP and DeepSpeed take the model over, and onto the accelerator, when training begins. FSDP is made to do so
        now: a model that is too large for one device fits no sooner. DeepSpeed's is put on the device whole. All
        processes must enter together.
        """
        self._place()
        was_training = self.model.training
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train(was_training)
            self._reshard()

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As the Trainer's, before training too."""
        self._place()
        before_training = not self.accelerator._models
        output = super().evaluation_loop(*args, **kwargs)
        self._reshard()
        if before_training and self.accelerator.num_processes > 1 and not self.is_deepspeed_enabled:
            self._unprepare()
        return output

    def _unprepare(self) -> None:
        """Undo what an evaluation before training did to the model.

        Accelerate takes a model that it has prepared once for one that it need not wrap: every process would train
        alone.
        """
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        setattr(self.model, PREPARED, False)
        self.accelerator._models.clear()

    def _place(self) -> None:
        if self.is_fsdp_enabled and not isinstance(self.model, FSDPModule):
            self.create_optimizer()  # FSDP takes a model with its optimizer only; training makes one anew
            self.model, _ = self.accelerator.prepare(self.model, self.optimizer)
            self.model_wrapped, self.optimizer = self.model, None
            # Training prepares the model again, and its layers would be wrapped twice.
            self.accelerator.state.fsdp_plugin.activation_checkpointing = False
        elif self.is_deepspeed_enabled and getattr(self, "deepspeed", None) is None:
            self._move_model_to_device(self.model, self.args.device)

    def _reshard(self) -> None:
        """Give back what a forward has gathered: an optimizer is made of the parameters as they are shared out."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def whole_model(self) -> nn.Module | None:
        """The model as it is trained so far, in one piece; None on all processes but the first, where it is shared out.

        All processes must call this together.
        """
        own: nn.Module = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if isinstance(own, FSDPModule):
            state = gather_state(own)
        elif self._is_zero3() and getattr(self, "deepspeed", None) is not None:
            state = self.accelerator.get_state_dict(self.deepspeed)
        else:
            return own
        return None if self._blank is None else filled(self._blank, state)

    def _is_zero3(self) -> bool:
        return self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
