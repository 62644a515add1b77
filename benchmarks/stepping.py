"""Inside a measuring process: train a few steps with a Trainer, and note time, memory, losses and gradient norms.

Every form is a `transformers.Trainer` and is driven by its own `train()`: data loader, collator, forward, backward,
optimizer and host code are all in the time.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

import harness


class Work(NamedTuple):
    """What a batch of rows asks for, in tokens.

    Attributes:
        plain: as the plain form would read them: what throughput is counted in.
        body: inputs a form needs that repeats nothing and pads nothing.
        head: scored tokens.
    """

    plain: int
    body: int
    head: int


def trainer_settings(case: dict[str, Any]) -> dict[str, Any]:
    """The `TrainingArguments` that are the same for every form."""
    return {
        "output_dir": f"{case['folder']}/trainer",
        "per_device_train_batch_size": case["pairs"],
        "gradient_accumulation_steps": 1,
        "max_steps": case["warmup"] + case["steps"],
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",  # transformers' own choice
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "bf16": case["dtype"] == "bfloat16",
        "use_cpu": case["device"] == "cpu",
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": case["device"] != "cpu",
        "seed": case["seed"],
    }


class Watch(TrainerCallback):
    """Notes the clock at the end of every step, the gradient's norm before the optimizer, and the peak memory."""

    def __init__(self, device: str, warmup: int, steps: int) -> None:
        self.device, self.fenced = device, {warmup, warmup + steps}
        self.memory = harness.PeakMemory(device)
        self.ends: list[float] = []
        self.norms: list[Tensor] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.memory.start()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.norms.append(nn.utils.get_total_norm(grads).detach())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A device that works ahead of the host is waited for where the measured steps begin and end, no more.
        if state.global_step in self.fenced:
            harness.synchronize(self.device)
        self.ends.append(time.perf_counter())


def measure(trainer: Trainer, case: dict[str, Any], work: list[Work]) -> dict[str, Any]:
    """Train, and return every raw figure; `work` has the steps' rows, those of the warm-up first."""
    rates = {"before": harness.matmul_rates(case["dtype"], case["device"])}
    operations = [training_operations(trainer.model, step.body, step.head) for step in work]
    watch = Watch(case["device"], case["warmup"], case["steps"])
    trainer.add_callback(watch)
    losses: list[Tensor] = []
    step_of_its_own = trainer.training_step

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        loss = step_of_its_own(*args, **kwargs)
        losses.append(loss.detach())
        return loss

    trainer.training_step = noted
    trainer.train()
    memory = watch.memory.read()
    rates["after"] = harness.matmul_rates(case["dtype"], case["device"])
    first, measured = case["warmup"] - 1, slice(case["warmup"], None)
    return {
        "seconds": watch.ends[-1] - watch.ends[first],
        "step_seconds": [
            end - start for start, end in zip(watch.ends[first:-1], watch.ends[first + 1 :], strict=True)
        ],
        "tokens": sum(step.plain for step in work[measured]),
        "body_tokens": sum(step.body for step in work[measured]),
        "head_tokens": sum(step.head for step in work[measured]),
        "useful_operations": sum(operations[measured]),
        "matmul_rates": rates,
        "losses": [loss.item() for loss in losses],
        "gradient_norms": [norm.item() for norm in watch.norms],
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "device": harness.device_description(case["device"]),
        **memory,
    }


def training_operations(model: nn.Module, body_tokens: int, head_tokens: int) -> float:
    """Matrix operations a step needs: 6 a weight and token, 4 where the weight is frozen.

    Forward 2, gradient of the inputs 2, gradient of the weight 2. Attention scores and element-wise work are
    not counted.
    """
    head = model.get_output_embeddings()
    total = 0.0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            tokens = head_tokens if module is head else body_tokens
            total += (6 if module.weight.requires_grad else 4) * module.weight.numel() * tokens
    return total
