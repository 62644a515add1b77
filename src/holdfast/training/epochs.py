"""Epochs that a resumed run can enter anywhere: the order of their rows, and what is done at their end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from holdfast.training.config import LeanConfig
from holdfast.training.row_lengths import grouped_by_length


class EpochOrder(Sampler[int]):
    """The order of the training rows: of each epoch a function of the seed and the epoch's number, and nothing else.

    So a resumed run, whose random number generators stand elsewhere when its rows are drawn, draws the same ones.

    Args:
        sampler: has an attribute `generator`, as PyTorch's `RandomSampler` does.
        seed: of epoch 0; epoch n has `seed + n`.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self._sampler, self._seed, self._epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(self._sampler)


class _SaveLater(Exception):
    """A save of an epoch's last step, before the epoch's end has brought its log and its evaluation."""


class EpochTrainer(Trainer):
    """Trainer whose epochs have an order of their own, and whose last steps are saved when all is done that belongs to
    them."""

    args: LeanConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._order: Any = None
        self._save_owed = False
        self._step_seen = -1  # the last one after which there was a log, an evaluation or a save
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        args = self.args
        if args.train_sampling_strategy == "group_by_length":
            rows_a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            dataset = self.train_dataset if train_dataset is None else train_dataset
            sampler: Any = grouped_by_length(dataset, rows_a_step)
        else:
            sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, RandomSampler | LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            sampler = EpochOrder(sampler, seed)
        self._order = sampler
        return sampler

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; loaders with processes of their own leave the global random numbers alone.

        Each of their iterators draws a number, persistent ones once a run: a resumed run would stand elsewhere.
        """
        loader = super()._get_dataloader(*args, **kwargs)
        if self.args.dataloader_num_workers:
            wrapped = getattr(loader, "base_dataloader", loader)  # by Accelerate: the one that draws
            for own in (loader, wrapped):
                own.generator = torch.Generator()
        return loader

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In order, whatever the order of training: nothing depends on it."""
        return SequentialSampler(eval_dataset)

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        """As the Trainer's, unless training was over when the checkpoint was saved."""
        if self._is_over():
            self.control.should_training_stop = True
            return
        # The loader's own call does not reach a sampler behind skipped batches and the shards of several processes.
        if hasattr(self._order, "set_epoch"):
            self._order.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, **kwargs)

    def _is_over(self) -> bool:
        """Whether there is no step to take: all are done, or the metric had not improved for too long before."""
        impatient = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        begins = self.state.global_step == self._initial_global_step > 0
        return self.state.global_step >= self.state.max_steps or (impatient and begins)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; an epoch's last step is saved once, when the log and evaluation of its end are done.

        A run that went on from a checkpoint before them would leave them out.
        """
        if self._save_owed:
            self.control.should_save, self._save_owed = True, False
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except _SaveLater:
            self.control.should_save, self._save_owed = False, True
        self._step_seen = self.state.global_step

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        last = self.state.global_step >= self.state.max_steps or float(self.state.epoch or 0).is_integer()
        if last and self._step_seen != self.state.global_step:
            raise _SaveLater  # the second of the two calls that follow such a step is still to come
        self.save_step()

    def save_step(self) -> None:
        """Write a checkpoint of the step just done."""
        raise NotImplementedError
