"""`auto_find_batch_size`: micro-batches that do not fit in memory are halved, and the step is done again.

The loss is one mean over the global batch however that is cut, so the gradients are the ones that were asked for:
the global batch stays as it is, and no optimizer step is lost or repeated. (Dropout draws anew.)
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from holdfast.data.collate import Batch
from holdfast.errors import ModelError

logger = logging.getLogger(__name__)

Collator = Callable[[Sequence[Mapping[str, Any]]], Batch]


def does_not_fit(error: BaseException) -> bool:
    """Whether an error says that memory is full, on a device or on the machine."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def out_of_memory(batch: Batch, step: int) -> ModelError:
    """The error for a micro-batch that does not fit, where micro-batches are not cut."""
    return ModelError(
        f"step {step}: out of memory at a micro-batch of {size_of(batch)}. Set `auto_find_batch_size: true`: it cuts "
        "micro-batches that do not fit, and keeps the global batch and the order of rows. Or lower "
        "`per_device_train_batch_size` (and raise `gradient_accumulation_steps` as much), or `max_length`"
    )


def out_of_memory_outside(step: int) -> ModelError:
    """The error where a step's micro-batches fit, and what comes after them does not."""
    return ModelError(
        f"step {step}: out of memory outside of the micro-batches: in the optimizer, whose state is made in its first "
        "step, or in an evaluation. Train an adapter, take an optimizer with less state (`optim: adafactor`), or "
        "lower `per_device_train_batch_size` or `per_device_eval_batch_size`"
    )


def size_of(batch: Batch) -> str:
    """A micro-batch in words, by shapes alone: a device that is out of memory need not be asked."""
    inputs = batch["input_ids"]
    rows = batch.get("row_lengths")
    longest = inputs.shape[1] if rows is None else max(map(sum, rows))
    padded = ", padding included" if rows is None else ""
    return f"{len(batch['row_index'])} rows, {inputs.numel()} tokens in all, the longest row {longest} tokens{padded}"


class Examples(tuple[Mapping[str, Any], ...]):
    """The rows of a micro-batch, carried along with it so that it can be cut."""

    def to(self, *args: Any, **kwargs: Any) -> Examples:
        """Themselves: what moves a batch to a device leaves them where they are."""
        return self


@dataclass(frozen=True)
class KeepExamples:
    """A collator whose batches carry their rows, as `examples`."""

    collator: Collator

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        return self.collator(examples) | {"examples": Examples(examples)}


@dataclass
class Halving:
    """Runs the micro-batches of a global batch in as many parts as memory needs.

    Attributes:
        collator: makes a part's batch of its rows.
        parts: how many parts a micro-batch is cut into; doubles when one does not fit, and stays.
    """

    collator: Collator
    parts: int = 1
    _done: list[Batch] = field(default_factory=list)

    def begin(self) -> None:
        """A global batch begins."""
        self._done = []

    def run(
        self,
        batch: Batch,
        step: Callable[[Batch], torch.Tensor],
        start_again: Callable[[], None],
    ) -> torch.Tensor:
        """`step` on a micro-batch, in parts; the sum of what it returned for this micro-batch's.

        Args:
            step: forward and backward, which adds to the gradients.
            start_again: forgets the gradients and sums of the global batch so far, after a step that did not fit.

        Raises:
            ModelError: a single row does not fit.
        """
        self._done.append(batch)
        todo = [batch]
        while True:
            try:
                losses = [[step(part) for part in self._cut(whole)] for whole in todo]
                return torch.stack(losses[-1]).sum()
            except RuntimeError as error:
                if not does_not_fit(error):
                    raise
                rows = max(len(whole["examples"]) for whole in self._done)
                if self.parts >= rows:
                    raise ModelError(
                        "one row alone does not fit in memory: lower `max_length`, set `activation_checkpointing`, "
                        "train an adapter, or load the model in half or 4-bit precision (the micro-batch: "
                        f"{size_of(batch)})"
                    ) from None  # its traceback would keep the memory
            self.parts *= 2
            logger.warning("a micro-batch does not fit in memory: each is cut into %d parts", self.parts)
            start_again()
            gc.collect()
            clear_device_cache()
            todo = self._done

    def _cut(self, batch: Batch) -> list[Batch]:
        examples = batch["examples"]
        if self.parts == 1:
            return [batch]
        size = -(-len(examples) // self.parts)
        return [self.collator(examples[at : at + size]) for at in range(0, len(examples), size)]
