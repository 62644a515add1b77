"""Training runs by name, the same for one process and for two: each writes its gradients and weights to a file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from holdfast import PreferenceConfig, PreferenceTrainer, SFTConfig, SFTTrainer
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model
from holdfast.ranks import once
from tests.faults.pair import sharded_on_cpu
from tests.training.conftest import WORDS, rows

# Rows of a global batch, however many processes take them; 25 rows leave one, 23 leave 11 for the last step.
TOGETHER, ACCUMULATION = 4, 3


@dataclass(frozen=True)
class Case:
    """A training run of two epochs in random order, with rows that do not come out even."""

    family: str
    objective: Any
    adapter: dict[str, Any] | None = None
    rows: int = 25
    supervised: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


LORA = {"rank": 4, "alpha": 8}
THRESHOLD = {"name": "threshold", "low": 0.003, "normalize": "kept"}
CASES = {
    "sft-full": Case("llama", "nll", supervised=True),
    "sft-lora": Case("llama", "nll", LORA, supervised=True, settings={"padding_free": False}),
    "sft-kept": Case("qwen3", THRESHOLD, rows=23, supervised=True, settings={"max_grad_norm": 0.5}),
    "sft-frozen-head": Case("llama", THRESHOLD, LORA | {"train_head": False}, 23, supervised=True),
    "slime-full": Case("gemma3", "slime", rows=23, settings={"max_grad_norm": 0.5}),
    "slime-lora": Case(
        "qwen3", "slime", LORA, settings={"padding_free": False, "activation_checkpointing": True}
    ),
    "slime-plain-rows": Case("qwen3", "slime", settings={"padding_free": False, "shared_prefix": False}),
    "dpo-full": Case("qwen3", "dpo", rows=23),
    "dpo-lora": Case("llama", "dpo", LORA),
}


# Not the same for one process and for two: dropout draws.
RANDOM = {"dropout": Case("llama", "nll", LORA | {"dropout": 0.3}, rows=23, supervised=True)}


def tokenizer() -> PreTrainedTokenizerBase:
    """Of some words."""
    return tiny_bpe_tokenizer([" ".join(WORDS)] * 3, 320)


def trainer_of(
    case: Case,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    dtype: torch.dtype = torch.float64,
    **settings: Any,
) -> Any:
    """A case's trainer, in float64 unless told otherwise, for as many processes as there are."""
    words = tokenizer()
    trainer_class: Any = SFTTrainer if case.supervised else PreferenceTrainer
    config: Any = SFTConfig if case.supervised else PreferenceConfig
    common = {
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_length": 64,
        "dataset_num_proc": 1,
        "logging_steps": 1,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "gradient_accumulation_steps": ACCUMULATION,
    }
    args = config(objective=case.objective, **(common | case.settings | settings))
    processes = args.world_size
    args.per_device_train_batch_size = TOGETHER // processes
    args.per_device_eval_batch_size = TOGETHER // processes
    return trainer_class(
        model=tiny_model(case.family, len(words), hidden_size=32, eos_token_id=words.eos_token_id).to(dtype),
        args=args,
        train_dataset=rows(case.rows),
        eval_dataset=rows(7),
        processing_class=words,
        peft_config=case.adapter,
        callbacks=list(callbacks),
    )


def launched(how: str) -> AbstractContextManager[None]:
    """As `how` says: `fsdp2`, `fsdp2-again` (layers computed again in the backward), or as many as there are."""
    return sharded_on_cpu(how == "fsdp2-again") if how.startswith("fsdp2") else nullcontext()


class Watch(TrainerCallback):
    """Keeps every step's gradients, whole."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        for name, parameter in model.named_parameters():
            if (gradient := parameter.grad) is not None:
                whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
                name = name.removeprefix("module.").replace("_checkpoint_wrapped_module.", "")
                self.gradients[f"{state.global_step}/{name}"] = whole.clone()


def train(name: str, how: str = "ddp") -> dict[str, Any]:
    """Evaluate, train, evaluate. Numbers go to `NAME-HOW.safetensors` in the folder we are in, the rest is returned."""
    folder, watch = Path(f"{name}-{how}").resolve(), Watch()
    with launched(how):
        trainer = trainer_of(CASES[name], folder, [watch])
        seen = watch_rows(trainer)
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
        kind = str(trainer.accelerator.distributed_type)
        whole = trainer.whole_model()
    if whole is not None and PartialState().is_main_process:
        numbers = watch.gradients | {f"weights/{key}": value for key, value in whole.state_dict().items()}
        save_file(
            {key: value.detach().clone().contiguous() for key, value in numbers.items()},
            f"{name}-{how}.safetensors",
        )
    return {
        "distributed": kind,
        "rows": seen,
        "log": trainer.state.log_history,
        "before": before,
        "after": after,
    }


def watch_rows(trainer: Any) -> list[list[int]]:
    """The rows of each micro-batch of this process, in the order in which it trains them."""
    seen: list[list[int]] = []
    step = trainer.training_step

    def watched(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.append([trainer.state.global_step, *inputs["row_index"].tolist()])
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = watched
    return seen


def train_in_half_precision() -> dict[str, Any]:
    """FSDP 2 with bfloat16, a frozen base in half precision: what comes out, and how gradients are added up."""
    with sharded_on_cpu():
        case, folder = Case("llama", "slime", LORA), Path("half").resolve()
        trainer = trainer_of(case, folder, dtype=torch.bfloat16, bf16=True, max_steps=1)
        outputs: list[Tensor] = []
        trainer.model.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
        trainer.train()
    policy = trainer.accelerator.state.fsdp_plugin.mixed_precision_policy
    logps = torch.cat(outputs)
    return {
        "param_dtype": str(policy.param_dtype),
        "reduce_dtype": str(policy.reduce_dtype),
        "logps": str(logps.dtype),
        "finer_than_half": bool((logps.bfloat16().to(logps) != logps).any()),
        "trained": sorted({str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}),
        "loss": trainer.state.log_history[0]["loss"],
    }


def evaluate_in_half_precision() -> list[list[float]]:
    """DDP with bfloat16: the losses of training alone, after an evaluation, and with evaluations in between."""
    losses = []
    for number, settings in enumerate(({}, {}, {"eval_strategy": "steps", "eval_steps": 1})):
        folder = Path(f"evaluated-{number}").resolve()
        trainer = trainer_of(
            CASES["sft-full"], folder, dtype=torch.float32, bf16=True, max_steps=3, **settings
        )
        if number == 1:
            trainer.evaluate()
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    return losses


def train_and_save(name: str, how: str) -> dict[str, Any]:
    """Train with a checkpoint after every step."""
    return _to_the_end(name, how, Path(f"whole-{name}-{how}").resolve(), None)


def go_on(name: str, how: str, whole: str) -> dict[str, Any]:
    """Go on from the second checkpoint of a run that `train_and_save` made, in the folder `whole`."""
    step, folder = "checkpoint-2", Path(f"from-{Path(whole).name}-by-{how}").resolve()

    def copy() -> None:
        shutil.copytree(Path(whole) / "out" / step, folder / "out" / step)

    once(copy)
    return _to_the_end(name, how, folder, True)


def _to_the_end(name: str, how: str, folder: Path, resume: bool | None) -> dict[str, Any]:
    with launched(how):
        trainer = trainer_of((CASES | RANDOM)[name], folder, save_strategy="steps", save_steps=1)
        seen = watch_rows(trainer)
        trainer.train(resume_from_checkpoint=resume)
        whole = trainer.whole_model()
    if whole is not None and PartialState().is_main_process:
        weights = {key: value.detach().clone().contiguous() for key, value in whole.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")
    return {"rows": seen, "log": trainer.state.log_history}


def keep_the_best(name: str, how: str) -> dict[str, Any]:
    """Train at far too high a rate, and end with the weights of the best step: here, the one with the largest loss."""
    folder = Path(f"best-{how}").resolve()
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"load_best_model_at_end": True, "greater_is_better": True, "save_total_limit": 1}
    settings |= {"learning_rate": 0.3, "on_spike": "off"}
    with launched(how):
        trainer = trainer_of(CASES[name], folder, **settings)
        trainer.train()
        after = trainer.evaluate()
    losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    return {"losses": losses[:-1], "after": after["eval_loss"], "best": trainer.state.best_model_checkpoint}
