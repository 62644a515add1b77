"""Every optimizer step is looked at before it is taken: are its numbers finite, are they anything like those before?

The loss of the global batch and the norm of its gradient are read together, once an optimizer step. A NaN in any
gradient is a NaN in the norm, and one in any parameter that counts is one in the loss. What exactly is wrong, and
which rows were in the batch, is found out afterwards, and written to `nonfinite-step-N.json` or `spike-step-N.json`
in the output folder.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from holdfast.errors import ModelError, NonFiniteError, SpikeError
from holdfast.files import replacing
from holdfast.training.config import LeanConfig
from holdfast.training.finite import nonfinite_names
from holdfast.training.metrics import wide
from holdfast.training.spikes import Spike, SpikeDetector

if TYPE_CHECKING:
    from holdfast.training.guarded_trainer import GuardedTrainer

logger = logging.getLogger(__name__)

# Steps left out in a row after which `skip` gives up: a few bad rows do not come so thick.
MOST_SKIPPED_IN_A_ROW = 10
# Steps in a row that a gradient scaler leaves out, halving its scale each time: from 2^16 down to where every gradient
# of a sound model has long been finite.
MOST_OVERFLOWS_IN_A_ROW = 40
# Names and places in a message; the file has all of them.
SHOWN = 5


class StepGuard:
    """Judges each optimizer step before it is taken.

    Attributes:
        skipped: steps left out so far.
        skipped_in_a_row: of those, the last without a good one between them.
        spikes: steps so far with a loss or a gradient far beyond those before.
        overflows_in_a_row: steps with a gradient that is not finite, the last without another between them.
    """

    def __init__(self, args: LeanConfig) -> None:
        self.on_nonfinite, self.on_spike = args.on_nonfinite, args.on_spike
        self.skipped = self.skipped_in_a_row = self.spikes = self.overflows_in_a_row = 0
        self._detector = SpikeDetector(args.spike_threshold, args.spike_window)
        self.begin([])

    def begin(self, rows: Sequence[Tensor]) -> None:
        """A global batch begins; `rows` are the `row_index` of this process's micro-batches."""
        self._rows = list(rows)
        self._shares: list[Tensor] = []
        self._losses: list[Tensor] = []

    def add(self, share: Tensor, loss: Tensor) -> None:
        """A micro-batch is done.

        Args:
            share: () what it adds to the loss of the global batch, before that is divided by its last divisor.
            loss: () its part of the final loss. These sum up to it, here and there only in the last micro-batch's.
        """
        self._shares.append(share)
        self._losses.append(loss)

    def admits(self, trainer: GuardedTrainer, norm: Tensor | float | None) -> tuple[bool, float | None]:
        """Whether the step may be taken, and the gradient norm as a number.

        Every process calls this, and comes to the same answer. One transfer from the device.

        Args:
            norm: () of the whole gradient; None: the engine does not tell.

        Raises:
            NonFiniteError: something is not finite, and the step is not to be skipped or skipping does not help.
            SpikeError: the loss or the norm is far beyond those before, and that is to stop the run.
        """
        loss, known_norm = self._read(trainer, norm)
        # A gradient that overflows is what a gradient scaler looks for: it leaves the step out, and scales less.
        scaled = trainer.accelerator.scaler is not None
        self.overflows_in_a_row = 0 if math.isfinite(known_norm) else self.overflows_in_a_row + 1
        scaled = scaled and self.overflows_in_a_row < MOST_OVERFLOWS_IN_A_ROW  # it does not help
        if not math.isfinite(loss) or not (math.isfinite(known_norm) or scaled):
            self._refuse(trainer, loss, known_norm)
            return False, known_norm
        self.skipped_in_a_row = 0
        if self.on_spike != "off" and (spikes := self._detector.observe(loss, known_norm)):
            self._report(trainer, spikes, loss, known_norm)
        return True, None if norm is None else known_norm

    def require_finite_loss(self, trainer: GuardedTrainer, loss: Tensor) -> None:
        """Stop at a micro-batch whose loss is not finite, before its backward: for what steps in the backward.

        Raises:
            NonFiniteError: naming the rows so far.
        """
        value = trainer.accelerator.reduce(wide(loss.detach()), reduction="sum").item()
        if not math.isfinite(value):
            self._shares.append(loss.detach())
            self._refuse(trainer, value, 0.0)

    def counts(self) -> dict[str, float]:
        """For the log, from the first time on: `skipped_steps` and `spikes` so far."""
        counts = {"skipped_steps": self.skipped, "spikes": self.spikes}
        return {name: float(count) for name, count in counts.items() if count}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to judge as this one would: plain numbers."""
        return {
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "spikes": self.spikes,
            "overflows_in_a_row": self.overflows_in_a_row,
            "detector": self._detector.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.skipped = state["skipped"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self.spikes = state["spikes"]
        self.overflows_in_a_row = state["overflows_in_a_row"]
        self._detector.load_state_dict(state["detector"])

    def _read(self, trainer: GuardedTrainer, norm: Tensor | float | None) -> tuple[float, float]:
        """The loss of the global batch and its gradient norm, the same in every process; 0 for a norm untold."""
        accelerator = trainer.accelerator
        loss = wide(torch.stack(self._losses)).sum()
        norm = torch.as_tensor(0.0 if norm is None else norm, device=loss.device)
        table = torch.stack([loss, norm.to(loss)])
        # losses are each process's own, times the number of processes; the norm is the same in each
        mean = accelerator.reduce(table, reduction="sum") / accelerator.num_processes
        first, second = mean.tolist()
        return first, second

    def _refuse(self, trainer: GuardedTrainer, loss: float, norm: float) -> None:
        """Name what is not finite; raise, or count the step as skipped."""
        self.skipped_in_a_row += 1
        named = dict(trainer.model.named_parameters())
        parameters = nonfinite_names(named, trainer.accelerator)
        none = torch.empty(0)
        gradients = {name: none if p.grad is None else p.grad for name, p in named.items() if p.requires_grad}
        damaged = nonfinite_names(gradients, trainer.accelerator)
        if parameters:
            what = f"{_several('the parameter', parameters)} not finite, so no loss will be again"
        elif not math.isfinite(loss):
            what = f"the loss is {loss}"
        else:
            what = f"the loss is {loss:.4g}, but {_several('the gradient of', damaged)} not finite"
        details = {
            "what": what,
            "loss": loss,
            "grad_norm": norm,
            "parameters": parameters,
            "gradients": damaged,
        }
        told = _write(trainer, "nonfinite", details, self._batch(trainer))
        if parameters:
            raise NonFiniteError(f"{told}. Go back to a checkpoint or a model whose weights are finite")
        if self.on_nonfinite == "raise":
            raise NonFiniteError(
                f"{told}. The step was not taken. Look at these rows; where they are sound, lower `learning_rate`, set "
                "`max_grad_norm`, or compute in float32 (`bf16: false`); `on_nonfinite: skip` leaves such batches out"
            )
        if self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"{told}. {self.skipped_in_a_row} steps in a row had to be left out, so it is not the rows: lower "
                "`learning_rate`, set `max_grad_norm`, or compute in float32 (`bf16: false`)"
            )
        self.skipped += 1
        if trainer.is_world_process_zero():
            logger.warning("%s. The step is left out", told)

    def _report(self, trainer: GuardedTrainer, spikes: Sequence[Spike], loss: float, norm: float) -> None:
        """Count a step with spikes; warn, or raise."""
        self.spikes += 1
        details = {"what": " and ".join(map(str, spikes)), "loss": loss, "grad_norm": norm}
        told = _write(trainer, "spike", details, self._batch(trainer))
        if self.on_spike == "raise":
            raise SpikeError(
                f"{told}. The step was not taken. Look at these rows; where they are sound, lower `learning_rate` or "
                "set `max_grad_norm`; `on_spike: warn` goes on, and `spike_threshold` says how far is too far"
            )
        if trainer.is_world_process_zero():
            logger.warning("%s", told)

    def _batch(self, trainer: GuardedTrainer) -> list[dict[str, Any]]:
        """The rows of the global batch, of all processes, each with its micro-batch and what that adds to the loss."""
        accelerator = trainer.accelerator
        found = [
            {
                "row_index": row,
                "process": accelerator.process_index,
                "micro_batch": number,
                "loss_of_micro_batch": share.item(),
            }
            for number, (rows, share) in enumerate(zip(self._rows, self._shares, strict=False))
            for row in rows.tolist()
        ]
        if accelerator.num_processes > 1:
            found = gather_object(found)
        _add_places(trainer, found)
        return found


def require_finite_parameters(model: nn.Module) -> None:
    """Refuse a model that cannot give a finite loss.

    Raises:
        ModelError: a parameter holds NaN or infinity; names it.
    """
    if names := nonfinite_names(dict(model.named_parameters())):
        raise ModelError(
            f"{_several('the parameter', names)} not finite: the model was damaged when it was trained, cast or saved; "
            "load another copy of it"
        )


def _add_places(trainer: GuardedTrainer, rows: Sequence[dict[str, Any]]) -> None:
    """Give each row its `row_id`, and `where` it was read from, as far as they are known."""
    dataset, stored = trainer.train_dataset, trainer.prepared["train"].rows
    numbers = np.asarray(dataset.with_format("numpy")["row_index"][:])
    wanted = np.flatnonzero(np.isin(numbers, [row["row_index"] for row in rows])).tolist()
    ids = dataset.select(wanted)["row_id"][:] if "row_id" in dataset.column_names else [None] * len(wanted)
    places = (
        [record.where for record in stored.select(wanted)] if stored is not None else [None] * len(wanted)
    )
    known = {
        int(numbers[position]): (row_id, where)
        for position, row_id, where in zip(wanted, ids, places, strict=True)
    }
    for row in rows:
        row["row_id"], row["where"] = known[row["row_index"]]


def _write(
    trainer: GuardedTrainer, kind: str, details: Mapping[str, Any], rows: Sequence[dict[str, Any]]
) -> str:
    """Write `<kind>-step-N.json`, and say what is in it."""
    step = trainer.state.global_step + 1  # the one in hand
    path = Path(trainer.args.output_dir) / f"{kind}-step-{step}.json"
    document = _plain({"step": step, **details, "rows": rows})
    listed = f"all in '{path}'"
    if trainer.is_world_process_zero():
        try:
            with replacing(path) as beside:
                beside.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="ascii")
        except OSError as error:  # what went wrong with the numbers matters more
            listed = f"which could not be written to '{path}': {error}"
    places = list(dict.fromkeys(str(row["where"] or row["row_id"] or row["row_index"]) for row in rows))
    shown = ", ".join(places[:SHOWN]) + (", ..." if len(places) > SHOWN else "")
    count = f"{len(rows)} rows" if len(rows) != 1 else "1 row"
    return f"step {step}: {details['what']}. Its {count}: {shown} ({listed})"


def _plain(value: Any) -> Any:
    """With numbers that JSON lacks as text: "nan", "inf", "-inf"."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _several(kind: str, names: Sequence[str]) -> str:
    """`the parameter 'x' is`, `the parameter 'x' (and 3 more) are`."""
    if not names:
        return f"{kind} some parameter is"  # gradients that an engine holds cannot be looked at one by one
    more = f" (and {len(names) - 1} more) are" if len(names) > 1 else " is"
    return f"{kind} '{names[0]}'{more}"
