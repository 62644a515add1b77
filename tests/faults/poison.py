"""Faults in the numbers of chosen steps."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from holdfast.training.lean_trainer import LeanTrainer, MicroBatch

# What the loss, or its gradient alone, is multiplied with.
FAULTS: dict[str, tuple[float, float]] = {
    "loss nan": (math.nan, math.nan),
    "loss inf": (math.inf, 1.0),
    "loss -inf": (-math.inf, 1.0),
    "gradient nan": (1.0, math.nan),
    "gradient inf": (1.0, math.inf),
    "loss x1000": (1000.0, 1000.0),
    "gradient x100000": (1.0, 1e5),
}


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, forward: float, backward: float) -> Tensor:
        ctx.factor = backward
        return value * forward

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream[0] * ctx.factor, None, None


def poison(trainer: LeanTrainer, fault: str, steps: Collection[int], micro_batch: int = 0) -> None:
    """Have one micro-batch of each of these optimizer steps (the first is 1) show the fault, in its metrics too."""
    forward, backward = FAULTS[fault]
    measure, step = trainer.measure, trainer.training_step
    seen: dict[int, int] = {}

    def counting(*args: Any, **options: Any) -> Tensor:
        now = trainer.state.global_step + 1
        seen[now] = seen.get(now, -1) + 1
        return step(*args, **options)

    def poisoned(*args: Any) -> MicroBatch:
        micro = measure(*args)
        now = trainer.state.global_step + 1
        if not trainer.model.training or now not in steps or seen[now] != micro_batch:
            return micro
        metrics = {name: (total * forward, count) for name, (total, count) in micro.metrics.items()}
        return MicroBatch(_Times.apply(micro.loss, forward, backward), micro.kept, metrics)

    trainer.training_step = counting  # type: ignore[method-assign]
    trainer.measure = poisoned  # type: ignore[method-assign]
