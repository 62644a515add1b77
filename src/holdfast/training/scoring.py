"""Score every row of a data set with the model as it stands: for the reference, for before and after, for quantiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler
from tqdm.auto import tqdm

from holdfast.data.collate import Batch
from holdfast.data.sampling import some_rows
from holdfast.models.token_logprobs import token_logprobs
from holdfast.training.lean_trainer import LeanTrainer
from holdfast.training.percentiles import Percentiles
from holdfast.training.shares import EvenWithoutRows, Shares

# Below this probability a rejected token counts as collapsed: formatting collapse shows here first.
COLLAPSED = 1e-4
MEASURED_ROWS = 10_000  # for percentiles; of a larger data set, a sample of so many


@dataclass(frozen=True)
class PairScores:
    """One value a pair, in the data set's order; each (pairs,) float64 on the CPU.

    Attributes:
        chosen, rejected: summed log-probs of the completions, nats.
        chosen_tokens, rejected_tokens: their lengths.
        collapsed: how many rejected tokens have a probability below `COLLAPSED`.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    collapsed: Tensor


@torch.no_grad()
def score_pairs(
    trainer: LeanTrainer, dataset: Any, description: str, batch_size: int | None = None
) -> PairScores:
    """Score `dataset`, tokenized pairs, in evaluation mode and the trainer's own precision.

    Each process scores its share; all of them return the whole.
    """
    columns = torch.zeros(5, len(dataset), dtype=torch.float64)
    for rows, batch, logps in _scored(
        trainer, dataset, description, batch_size or trainer.args.per_device_eval_batch_size
    ):
        chosen, chosen_mask = take(logps, batch["chosen_slots"].cpu())
        rejected, rejected_mask = take(logps, batch["rejected_slots"].cpu())
        collapsed = (rejected < math.log(COLLAPSED)) & rejected_mask
        values = (chosen, rejected, chosen_mask, rejected_mask, collapsed)
        columns[:, rows] = torch.stack([value.sum(-1).double() for value in values])
    return PairScores(*_of_all(trainer, columns))


@torch.no_grad()
def score_targets(trainer: LeanTrainer, dataset: Any, description: str) -> Tensor:
    """Log-probs (tokens,) of every target token of `dataset`, tokenized demonstrations, row after row; float64, nats.

    As `score_pairs`: in evaluation mode, each process its share, all of them the whole.
    """
    column = dataset.select_columns(["completion_mask"]).with_format("numpy")["completion_mask"][:]
    counts = np.array([np.count_nonzero(mask) for mask in column])
    ends = np.cumsum(counts)
    found = torch.zeros(int(ends[-1]), dtype=torch.float64)
    batch_size = trainer.args.per_device_eval_batch_size
    for rows, _, logps in _scored(trainer, dataset, description, batch_size):
        if rows:
            places = np.concatenate([np.arange(ends[row] - counts[row], ends[row]) for row in rows])
            found[torch.from_numpy(places)] = logps
    return _of_all(trainer, found)


def measure_percentiles(trainer: LeanTrainer, dataset: Any) -> Percentiles:
    """Percentiles of `dataset`'s target tokens under the trainer's model as it stands.

    Of more than `MEASURED_ROWS` rows, a sample drawn by the run's seed. Every process takes part; all get the whole.
    """
    measured = some_rows(dataset, MEASURED_ROWS, trainer.args.seed)
    logps = score_targets(trainer, measured, "percentiles of the base model")
    return Percentiles.of(torch.exp(logps.clamp(max=0)).numpy())


def _scored(
    trainer: LeanTrainer, dataset: Any, description: str, batch_size: int
) -> Iterator[tuple[list[int], Batch, Tensor]]:
    """This process's share of the rows: their numbers, their batch, and its scored tokens' log-probs on the CPU."""
    accelerator = trainer.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    shares = Shares(SequentialSampler(dataset), batch_size, world, rank)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=shares,
        collate_fn=EvenWithoutRows(trainer.data_collator, dataset[0]),
        generator=torch.Generator(),  # it draws a number even here: not from those that training goes on with
    )
    with trainer.scoring() as model, accelerator.autocast():
        for rows, batch in tqdm(
            zip(shares, loader, strict=True),
            desc=description,
            total=len(shares),
            disable=rank > 0 or trainer.args.disable_tqdm,
            leave=False,
        ):
            yield rows, batch, token_logprobs(model, trainer._prepare_inputs(batch)).double().cpu()


def _of_all(trainer: LeanTrainer, own: Tensor) -> Tensor:
    """What each process found, 0 elsewhere -> what all found together."""
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return own
    total: Tensor = accelerator.reduce(own.to(accelerator.device), reduction="sum").cpu()
    return total


def take(logps: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Place scored tokens (tokens,) at `slots` (pairs, time), 0 and a False mask where a slot is -1."""
    mask = slots >= 0
    return torch.where(mask, logps[slots.clamp(min=0)], 0.0), mask
