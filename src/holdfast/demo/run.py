"""`holdfast demo`: four ways to align one small model, side by side, in about two minutes on two cores.

A trained starting model ships with the package (`make_start.py` makes it again). The demo touches it up on
demonstrations, a third of them wrong; then trains a copy of it with each objective on the same pairs, right answer
over wrong answer, both well formed; and judges each copy on tasks it never met.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.demo.scoring import (
    Interval,
    bootstrap_interval,
    proportion_interval,
    sample_completions,
    score_completions,
)
from holdfast.demo.world import Task, held_out, preference_pairs, preference_rows, sft_rows
from holdfast.models.loading import load_model, load_tokenizer
from holdfast.reports.comparison import Arm, write_comparison
from holdfast.training.config import PreferenceConfig, SFTConfig
from holdfast.training.preference_trainer import PreferenceTrainer
from holdfast.training.progress import train_with_progress
from holdfast.training.scoring import PairScores, score_pairs
from holdfast.training.sft_trainer import SFTTrainer

OBJECTIVES: dict[str, dict[str, Any]] = {
    "SLIME": {"name": "slime", "preset": "paper"},
    "DPO": {"name": "dpo", "beta": 0.1},
    "SimPO": {"name": "simpo", "beta": 2.0, "gamma": 1.0},
    "SFT on the chosen": {"name": "sft"},
}


@dataclass(frozen=True)
class Budget:
    """What every arm gets; the defaults are the demo's."""

    touch_up_steps: int = 30
    touch_up_rate: float = 2e-4
    wrong_share: float = 0.35
    steps: int = 150
    pairs_a_step: int = 32
    learning_rate: float = 2e-4
    max_grad_norm: float = 1.0  # without clipping SimPO collapses at this rate
    judged: int = 300


@dataclass(frozen=True)
class Result:
    """One arm's judgement on held-out tasks.

    Attributes:
        exact, valid: shares of answers sampled at temperature 1, with Wilson intervals.
        drift: change of the right answers' mean log-prob since before alignment, nats a token.
        floor: share of the wrong answers' tokens with p < 1e-4.
        log: the training metrics, one mapping a logging step.
    """

    name: str
    exact: Interval
    valid: Interval
    drift: Interval
    floor: Interval
    log: list[dict[str, Any]]


def run_demo(
    folder: Path, seed: int = 0, budget: Budget | None = None, progress: bool = True
) -> list[Result]:
    """Train and judge every arm; write `comparison.html` into `folder`."""
    budget = budget or Budget()
    with start_folder() as start:
        model, tokenizer = load_model(str(start), dtype="float32"), load_tokenizer(str(start))
    tasks = held_out(budget.judged, seed)
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": seed,
        "save_strategy": "no",
        "use_cpu": True,
    }
    settings |= {"max_length": 128, "cache_dir": str(folder / "cache")}
    settings |= {"disable_tqdm": not progress, "per_device_train_batch_size": budget.pairs_a_step}

    touch_up = SFTTrainer(
        model=model,
        args=SFTConfig(max_steps=budget.touch_up_steps, learning_rate=budget.touch_up_rate, **settings),
        train_dataset=sft_rows(budget.touch_up_steps * budget.pairs_a_step, seed, budget.wrong_share),
        processing_class=tokenizer,
    )
    train_with_progress(touch_up, f"{'SFT touch-up':>17}")
    results: list[Result] = []
    before: PairScores | None = None  # measured with the first arm's trainer, ahead of its training
    for name, objective in OBJECTIVES.items():
        trainer = PreferenceTrainer(
            model=copy.deepcopy(model),
            args=PreferenceConfig(
                objective=objective,
                max_steps=budget.steps,
                learning_rate=budget.learning_rate,
                max_grad_norm=budget.max_grad_norm,
                gradient_accumulation_steps=1,
                logging_steps=10,
                **settings,
            ),
            train_dataset=preference_rows(budget.steps * budget.pairs_a_step, seed),
            eval_dataset=preference_pairs(tasks, seed),
            processing_class=tokenizer,
        )
        if before is None:
            before = score_pairs(trainer, trainer.eval_dataset, "judging the start")
            results.append(_judge("Start (SFT)", trainer.model, tokenizer, tasks, before, before, seed, []))
        train_with_progress(trainer, f"{name:>17}")
        after = score_pairs(trainer, trainer.eval_dataset, f"judging {name}")
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        results.append(_judge(name, trainer.model, tokenizer, tasks, after, before, seed, log))
    _write(folder, results, budget, seed)
    return results


def _judge(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[Task],
    scores: PairScores,
    before: PairScores,
    seed: int,
    log: list[dict[str, Any]],
) -> Result:
    """Sample an answer to every task at temperature 1, and compare log-probs with those before alignment."""
    answers = sample_completions(
        model, tokenizer, [task.prompt for task in tasks], temperature=1.0, seed=seed
    )
    judged = score_completions(tasks, answers)
    drift = bootstrap_interval(((scores.chosen - before.chosen) / scores.chosen_tokens).tolist(), seed)
    return Result(
        name=name,
        exact=proportion_interval(judged.exact),
        valid=proportion_interval(judged.valid),
        drift=drift,
        floor=bootstrap_interval((scores.collapsed / scores.rejected_tokens).tolist(), seed),
        log=log,
    )


def _write(folder: Path, results: list[Result], budget: Budget, seed: int) -> Path:
    arms = [
        Arm(
            result.name,
            result.log,
            {
                "exact": result.exact,
                "valid_format": result.valid,
                "chosen_drift": result.drift,
                "rejected_floor": result.floor,
            },
        )
        for result in results
    ]
    folder.mkdir(parents=True, exist_ok=True)
    return write_comparison(
        folder / "comparison.html", "Four ways to align one small model", arms, notes(budget, seed)
    )


def notes(budget: Budget, seed: int) -> list[str]:
    """What the numbers are, and what they do not show."""
    return [
        f"Each arm: {budget.steps} steps of {budget.pairs_a_step} pairs at a peak learning rate of "
        f"{budget.learning_rate:g}, linear to zero, gradients clipped at norm {budget.max_grad_norm:g}, every weight "
        f"trained; seed {seed}, torch {torch.__version__}.",
        f"Judged on {budget.judged} tasks with prompts none of the arms met, one answer each at temperature 1.",
        "Intervals are 95 %: Wilson's for shares of answers, a bootstrap over tasks for the rest. They cover the "
        "choice of tasks, not that of the training seed.",
        "One learning rate for all arms, high on purpose: it shows how each fails. Lower ones are kinder to DPO and "
        "SimPO. Where the chosen answer is simply right, as here, training on it alone is hard to beat.",
    ]


@contextmanager
def start_folder() -> Iterator[Path]:
    """The shipped starting model, as a folder."""
    with as_file(files("holdfast.demo") / "start") as folder:
        yield folder
