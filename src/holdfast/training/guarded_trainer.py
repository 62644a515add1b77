"""A Trainer that looks at each optimizer step before it is taken, and can leave it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor, nn

from holdfast.errors import ConfigError
from holdfast.training.config import LeanConfig
from holdfast.training.gradients import clip_gradients, gradient_norm
from holdfast.training.guards import StepGuard
from holdfast.training.halving import does_not_fit, out_of_memory_outside
from holdfast.training.preparation import Prepared
from holdfast.training.resuming import ResumableTrainer

# They measure and clip the gradients themselves; FSDP does where it is of version 1.
ENGINES = (DistributedType.DEEPSPEED, DistributedType.XLA, DistributedType.MEGATRON_LM)


class GuardedTrainer(ResumableTrainer):
    """Trainer with a `StepGuard` between the last backward and the optimizer step."""

    args: LeanConfig
    prepared: dict[str, Prepared]  # "train" and "eval", as far as they are given

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guard = StepGuard(self.args)
        for name, value, instead in (("on_nonfinite", "skip", "raise"), ("on_spike", "raise", "warn")):
            if getattr(self.args, name) == value and self._steps_in_backward:
                raise ConfigError(
                    f"{name}: {value} stands before the optimizer step, which DeepSpeed and some optimizers (lomo, "
                    f"layerwise) take in the backward; set `{name}: {instead}`"
                )

    @property
    def _steps_in_backward(self) -> bool:
        """Whether the backward changes the weights: there is no optimizer step to stand before."""
        optimizer = self.args.optim
        return self.is_deepspeed_enabled or "layerwise" in optimizer or optimizer in ("lomo", "adalomo")

    def begin_step(self, rows: Sequence[Tensor]) -> None:
        """A global batch begins; `rows` are the `row_index` of this process's micro-batches."""
        self._guard.begin(rows)
        self._loss_before = self._tr_loss.clone()

    def leave_out_step(self, model: nn.Module) -> None:
        """Have the optimizer step change nothing, and the log's loss be that of the other steps."""
        # Without a gradient an optimizer passes a parameter over: its moments stay too, to the last bit.
        model.zero_grad()
        self._tr_loss.copy_(self._loss_before)

    def _clip_grad_norm(self, model: nn.Module) -> float | None:
        return self._guarded_norm(model, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: float | None = None) -> float | None:
        # With `max_grad_norm`, `_clip_grad_norm` has been here; a norm that nobody knows stays None.
        return grad_norm if self.args.max_grad_norm > 0 else self._guarded_norm(model)

    def _guarded_norm(self, model: nn.Module, max_norm: float | None = None) -> float | None:
        """The gradient norm; the gradients are clipped, or gone if this step is to be left out.

        Raises:
            NonFiniteError, SpikeError: see `StepGuard.admits`.
        """
        kind = self.accelerator.distributed_type
        norm: Any
        if kind in ENGINES or (kind == DistributedType.FSDP and not self.accelerator.is_fsdp2):
            clipped = None if max_norm is None else super()._clip_grad_norm(model)
            norm, max_norm = super()._get_grad_norm(model, grad_norm=clipped), None
        else:
            self.accelerator.unscale_gradients()
            norm = gradient_norm(model)
        admitted, value = self._guard.admits(self, None if self._steps_in_backward else norm)
        if not admitted:
            self.leave_out_step(model)
        elif max_norm is not None:
            clip_gradients(model, max_norm, norm)
        return norm if value is None else value

    def _run_epoch(self, **kwargs: Any) -> None:
        """As the Trainer's; memory that runs out outside of the micro-batches is an error that says so."""
        try:
            super()._run_epoch(**kwargs)
        except RuntimeError as error:
            if not does_not_fit(error):
                raise
            raise out_of_memory_outside(self.state.global_step + 1) from None

    # ---- what a checkpoint holds

    def begin_sums(self) -> None:
        """The guard has seen nothing, or what the checkpoint's had."""
        self._guard = StepGuard(self.args)
        super().begin_sums()

    def run_state(self) -> dict[str, Any]:
        """With what the guard has seen."""
        return super().run_state() | {"guard": self._guard.state_dict()}

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """As `run_state` took it."""
        super().load_run_state(state)
        self._guard.load_state_dict(state["guard"])

    def steps_taken(self) -> int:
        """Without those that were left out."""
        return super().steps_taken() - self._guard.skipped
