"""Score every pair of a data set with the model as it stands: for the reference, and for before and after."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler
from tqdm.auto import tqdm

from holdfast.models.token_logprobs import token_logprobs
from holdfast.training.lean_trainer import LeanTrainer
from holdfast.training.shares import EvenWithoutRows, Shares

# Below this probability a rejected token counts as collapsed: formatting collapse shows here first.
COLLAPSED = 1e-4


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
    accelerator = trainer.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    shares = Shares(
        SequentialSampler(dataset), batch_size or trainer.args.per_device_eval_batch_size, world, rank
    )
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=shares,
        collate_fn=EvenWithoutRows(trainer.data_collator, dataset[0]),
        generator=torch.Generator(),  # it draws a number even here: not from those that training goes on with
    )
    columns = torch.zeros(5, len(dataset), dtype=torch.float64)
    with trainer.scoring() as model, accelerator.autocast():
        for rows, batch in tqdm(
            zip(shares, loader, strict=True),
            desc=description,
            total=len(shares),
            disable=rank > 0 or trainer.args.disable_tqdm,
            leave=False,
        ):
            logps = token_logprobs(model, trainer._prepare_inputs(batch)).double().cpu()
            chosen, chosen_mask = take(logps, batch["chosen_slots"].cpu())
            rejected, rejected_mask = take(logps, batch["rejected_slots"].cpu())
            collapsed = (rejected < math.log(COLLAPSED)) & rejected_mask
            values = (chosen, rejected, chosen_mask, rejected_mask, collapsed)
            columns[:, rows] = torch.stack([value.sum(-1).double() for value in values])
    total: Tensor = accelerator.reduce(columns.to(accelerator.device), reduction="sum").cpu()
    return PairScores(*total)


def take(logps: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Place scored tokens (tokens,) at `slots` (pairs, time), 0 and a False mask where a slot is -1."""
    mask = slots >= 0
    return torch.where(mask, logps[slots.clamp(min=0)], 0.0), mask
