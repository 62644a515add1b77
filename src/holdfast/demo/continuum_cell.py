"""One cell of the continuum: a copy of the base model, trained with one objective in one setting, and judged."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.data.collate import SFTCollator
from holdfast.data.information import InformativeTokens
from holdfast.demo.continuum_config import (
    BaseSection,
    JudgingSection,
    Spec,
    TrainingSection,
)
from holdfast.demo.continuum_tasks import KNOWN_KINDS, Setting, demonstrations, judged_tasks
from holdfast.demo.scoring import sample_completions, score_completions
from holdfast.demo.world import Task, tiny_tokenizer
from holdfast.files import making
from holdfast.models.loading import load_model
from holdfast.models.tiny import tiny_model
from holdfast.models.token_logprobs import token_logprobs
from holdfast.objectives.registry import objective_spec
from holdfast.training.config import SFTConfig
from holdfast.training.progress import train_with_progress
from holdfast.training.sft_trainer import SFTTrainer

LOGGED = ("step", "loss", "probability/target", "capability", "alpha")
MEASURED_ROWS = 1000


def make_base(base: BaseSection, seed: int, folder: Path) -> None:
    """Train the model that knows the known families, and publish it as `folder`."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(
        "qwen3",
        len(tokenizer),
        hidden_size=base.hidden_size,
        layers=base.layers,
        seed=seed,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    rows = demonstrations(Setting(KNOWN_KINDS), base.batch_size * base.steps, f"base:{seed}")
    _train(model, tokenizer, rows, "nll", base.steps, base.batch_size, base.learning_rate, seed)
    _publish(model, folder)


def give_a_taste(start: Path, setting: Setting, training: TrainingSection, seed: int, folder: Path) -> None:
    """Train the base model for `setting.taste` steps on right answers to the setting's tasks, and publish it."""
    rows = demonstrations(setting, training.batch_size * setting.taste, f"taste:{seed}", clean=True)
    model, tokenizer = load_model(str(start), dtype="float32"), tiny_tokenizer()
    _train(model, tokenizer, rows, "nll", setting.taste, training.batch_size, training.learning_rate, seed)
    _publish(model, folder)


def run_cell(
    start: Path,
    setting: Setting,
    spec: str | Spec | None,
    training: TrainingSection,
    judging: JudgingSection,
    seed: int,
) -> dict[str, Any]:
    """Train and judge; everything measured, as JSON holds it.

    Args:
        start: the model that is trained.
        spec: the objective; None: no training.
        seed: of rows, order of training, tasks and samples; the same for every objective.
    """
    began, cpu_began = time.perf_counter(), time.process_time()
    model, tokenizer = load_model(str(start), dtype="float32"), tiny_tokenizer()
    rows = demonstrations(setting, training.batch_size * training.steps, f"train:{seed}")
    result: dict[str, Any] = {}
    if spec is None:
        result["start"] = measure_start(model, tokenizer, rows)
    else:
        result["spec"], result["log"] = _train(
            model, tokenizer, rows, spec, training.steps, training.batch_size, training.learning_rate, seed
        )
    result |= judge(
        model, tokenizer, judged_tasks(setting, judging.tasks, f"judge:{seed}"), judging.samples, seed
    )
    return result | {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu_began, 1),
    }


def judge(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], samples: int, seed: int
) -> dict[str, Any]:
    """Shares of exact and of well-formed answers: greedy, and the mean of `samples` at temperature 1."""
    prompts = [task.prompt for task in tasks]

    def shares(temperature: float, count: int) -> dict[str, Any]:
        exact: dict[str, list[bool]] = defaultdict(list)
        valid: list[bool] = []
        for number in range(count):
            answers = sample_completions(
                model, tokenizer, prompts, temperature=temperature, seed=1000 * seed + number
            )
            scores = score_completions(tasks, answers)
            valid += scores.valid
            for task, hit in zip(tasks, scores.exact, strict=True):
                exact[task.kind].append(hit)
        hits = [hit for kind in exact.values() for hit in kind]
        return {
            "exact": sum(hits) / len(hits),
            "valid": sum(valid) / len(valid),
            "by_kind": {kind: sum(found) / len(found) for kind, found in sorted(exact.items())},
        }

    return {"greedy": shares(0.0, 1), "sampled": shares(1.0, samples)}


def measure_start(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]
) -> dict[str, float]:
    """What the model makes of the rows before training: the capability proxies."""
    p, informative = target_probabilities(model, tokenizer, rows[:MEASURED_ROWS])
    return {
        "mean_probability": p.mean().item(),
        "share_above_0.55": (p > 0.55).double().mean().item(),
        "informative_mean_probability": p[informative].mean().item(),
        "informative_share": informative.double().mean().item(),
    }


@torch.no_grad()
def target_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens,) probabilities of the rows' target tokens, float64; and which of them carry information."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=_arguments(scratch, "nll", 1, len(rows), 0.0, 0),
            train_dataset=rows,
            processing_class=tokenizer,
        )
        dataset, collator = trainer.train_dataset, SFTCollator(tokenizer.pad_token_id)
        information = InformativeTokens.of(dataset)
        model.eval()
        p, carried = [], []
        for at in range(0, len(dataset), 256):
            batch = collator([dataset[row] for row in range(at, min(at + 256, len(dataset)))])
            p.append(token_logprobs(model, batch).double().exp())
            carried.append(information(batch))
        model.train()
    return torch.cat(p), torch.cat(carried)


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    objective: str | Spec,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> tuple[Spec, list[dict[str, Any]]]:
    """Train every weight; the objective with every hyperparameter, as measured, and what was logged."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=_arguments(scratch, objective, steps, batch_size, learning_rate, seed),
            train_dataset=rows,
            processing_class=tokenizer,
        )
        train_with_progress(trainer, "cell")  # which `disable_tqdm` keeps silent
    assert trainer.measured is not None
    log = [
        {key: entry[key] for key in LOGGED if key in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return dict(objective_spec(trainer.measured)), log


def _arguments(
    folder: str, objective: str | Spec, steps: int, batch_size: int, learning_rate: float, seed: int
) -> SFTConfig:
    return SFTConfig(
        output_dir=folder,
        objective=objective,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        logging_steps=max(1, steps // 20),
        save_strategy="no",
        max_length=128,
        padding_free=False,  # rows of one short length: padding them costs less than flattening
        dataset_num_proc=1,
        cache_dir=str(Path(folder) / "cache"),
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )


def _publish(model: PreTrainedModel, folder: Path) -> None:
    with making(folder) as beside:
        model.save_pretrained(beside)
        tiny_tokenizer().save_pretrained(beside)
