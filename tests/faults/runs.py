"""Tiny runs that are stopped and resumed, and pictures of all that must be the same afterwards."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model
from holdfast.training.config import PreferenceConfig, SFTConfig
from holdfast.training.lean_trainer import LeanTrainer
from holdfast.training.metrics_file import MetricsFile
from holdfast.training.preference_trainer import PreferenceTrainer
from holdfast.training.sft_trainer import SFTTrainer
from tests.training.conftest import WORDS, rows

KINDS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTTrainer, SFTConfig),
    "slime": (PreferenceTrainer, PreferenceConfig),
}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
# Measured with a clock: no two runs agree on them.
CLOCKED = ("tokens_per_second", "_runtime", "_per_second")
# Two epochs of global batches of 6, 6 and 2 rows: micro-batches of 2, in threes and one alone.
ROWS, STEPS = 14, 6

_tokenizer: PreTrainedTokenizerBase | None = None


@contextmanager
def little_to_collect() -> Iterator[None]:
    """Each training collects garbage; what the imports have left need not be looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def shared_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of all runs, made once."""
    global _tokenizer
    if _tokenizer is None:
        _tokenizer = tiny_bpe_tokenizer([" ".join(WORDS)] * 3, 280)
    return _tokenizer


def settings(folder: Path, **changed: Any) -> dict[str, Any]:
    """The arguments of every run: two epochs, three micro-batches a step, the last step of an epoch a ragged one."""
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "disable_tqdm": True,
        "max_length": 48,
        "cache_dir": str(folder.parent / "cache"),
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "num_train_epochs": 2,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        **changed,
    }


def trainer_of(
    kind: str,
    folder: Path,
    *,
    lora: bool,
    train: Sequence[Any] | None = None,
    evaluate: Sequence[Any] | None = None,
    callbacks: Iterable[TrainerCallback] = (),
    model: dict[str, Any] | None = None,
    adapter: dict[str, Any] | None = None,
    **changed: Any,
) -> LeanTrainer:
    """A trainer of a fresh tiny model with dropout; two calls give equal ones."""
    trainer_class, config_class = KINDS[kind]
    tokenizer = shared_tokenizer()
    shape = {"hidden_size": 32, "attention_dropout": 0.1, "eos_token_id": tokenizer.eos_token_id}
    trainer: LeanTrainer = trainer_class(
        tiny_model("qwen3", len(tokenizer), **shape | (model or {})),
        config_class(**settings(folder, **changed)),
        train_dataset=rows(ROWS) if train is None else train,
        eval_dataset=evaluate,
        processing_class=tokenizer,
        peft_config=(LORA | (adapter or {})) if lora else None,
        callbacks=[MetricsFile(folder / "metrics.jsonl", kind), *callbacks],
    )
    return trainer


@dataclass
class Picture:
    """All that a resumed run must have in common with the uninterrupted one.

    Attributes:
        state: weights, optimizer, scheduler and random numbers, by name.
        logs: what was logged, without what a clock has measured.
        lines: `metrics.jsonl`, likewise.
        rows: the rows of each step's micro-batches.
        loss: the mean loss of training.
    """

    state: dict[str, Any]
    logs: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    loss: float
    rows: list[tuple[int, list[int]]] = field(default_factory=list)

    def require_same(self, other: Picture) -> None:
        """Bit for bit; the rows as far as both have taken the step."""
        assert self.state.keys() == other.state.keys()
        differing = [name for name in self.state if not same(self.state[name], other.state[name])]
        assert differing == []
        assert self.logs == other.logs
        assert self.lines == other.lines
        assert self.loss == other.loss
        first = max(self.rows[0][0] if self.rows else 99, other.rows[0][0] if other.rows else 99)
        assert [row for row in self.rows if row[0] >= first] == [row for row in other.rows if row[0] >= first]


def run(trainer: LeanTrainer, resume: Any = None) -> Picture:
    """Train, with random number generators that stand anywhere, and take the picture."""
    taken: list[tuple[int, list[int]]] = []
    step = trainer.training_step

    def recording(model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        taken.append((trainer.state.global_step + 1, inputs["row_index"].tolist()))
        return step(model, inputs, *args, **options)

    trainer.training_step = recording  # type: ignore[method-assign]
    if resume is not None:
        for draw in (random.random, np.random.random, lambda: torch.rand(3)):
            draw()
    output = trainer.train(resume_from_checkpoint=resume)
    return picture(trainer, output.training_loss, taken)


def picture(trainer: LeanTrainer, loss: float, taken: list[tuple[int, list[int]]]) -> Picture:
    """The picture of a trainer that has trained."""
    optimizer, scheduler = trainer.optimizer, trainer.lr_scheduler
    assert optimizer is not None
    assert scheduler is not None
    state = {f"weights {name}": tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    state |= {
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng python": random.getstate(),
        "rng numpy": np.random.get_state(),  # noqa: NPY002
        "rng torch": torch.get_rng_state(),
        "guard": trainer._guard.state_dict(),
        "epoch": trainer.state.epoch,
    }
    path = Path(trainer.args.output_dir) / "metrics.jsonl"
    text = path.read_text() if trainer.is_world_process_zero() else ""
    lines = [unclocked(json.loads(line)) for line in text.splitlines()]
    return Picture(state, [unclocked(log) for log in trainer.state.log_history], lines, loss, taken)


def unclocked(log: dict[str, Any]) -> dict[str, Any]:
    """A log without what was measured with a clock."""
    return {name: value for name, value in log.items() if not name.endswith(CLOCKED)}


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the last bit; of sharded tensors, this process's parts."""
    if isinstance(one, DTensor) and isinstance(other, DTensor):
        one, other = one.to_local(), other.to_local()
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
