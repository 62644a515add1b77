"""The objective settled by experiment: a few steps with each candidate, compared on rows none of them trained on."""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from holdfast.capability.answers import Question, exact_matches, questions
from holdfast.capability.intervals import SEEDS, prompt_numbers
from holdfast.capability.pilot_report import START, PilotReport, Scores, compare
from holdfast.capability.scoring import score_tokens
from holdfast.data.intake import Intake
from holdfast.data.sampling import some_rows
from holdfast.data.splits import position
from holdfast.data.stored import StoredRows
from holdfast.errors import ConfigError, DataError
from holdfast.objectives.registry import list_objectives
from holdfast.training.config import SFTConfig
from holdfast.training.preparation import Prepared, prepared
from holdfast.training.progress import train_with_progress
from holdfast.training.sft_trainer import SFTTrainer

HELD_OUT_SHARE = 0.2  # of the rows, at most
HELD_OUT_ROWS = 200
SAMPLES = 4
# Tokens of an answer up to which it is generated and matched word for word. With p = 0.95 a token, an answer of 64 is
# sampled whole with a chance of 0.04: longer ones tell no candidate from another, and cost the most.
LONGEST_ANSWER = 64
SHARE_TO_ASK = 0.5  # of the held-out answers that must be short enough; else none is generated
# Settings that the pilot settles itself, or that none of its candidates reads.
WITHOUT_EFFECT = frozenset(
    {
        *("objective", "max_steps", "num_train_epochs", "output_dir", "seed", "data_seed", "disable_tqdm"),
        *("save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end"),
        *("eval_strategy", "eval_steps", "eval_on_start", "eval_delay", "per_device_eval_batch_size"),
        *("percentiles", "train_on"),
    }
)

# The shapes worth telling apart: prior-averse, in between, prior-leaning, and the paper's thresholded NLL.
CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    "nll": {"name": "nll"},
    "f_alpha 0.3": {"name": "f_alpha", "alpha": 0.3},
    "p": {"name": "p"},
    "threshold 0.2": {"name": "threshold", "low": 0.2},
    "adaptive": {"name": "adaptive"},
}


def candidates() -> dict[str, dict[str, Any]]:
    """The candidates that are registered, by the name they go by in a pilot."""
    known = list_objectives("token")
    return {name: dict(spec) for name, spec in CANDIDATES.items() if spec["name"] in known}


@dataclass(frozen=True)
class _Arena:
    """What every arm is judged on, and how."""

    tokenizer: PreTrainedTokenizerBase
    held_out: Prepared
    questions: list[Question]
    asked: list[int]  # numbers of the questions that are put, those with an answer short enough
    samples: int
    batch_size: int
    seed: int
    progress: bool

    @property
    def ends(self) -> set[int]:
        """Tokens that end an answer."""
        return {*self.held_out.end_tokens, int(self.tokenizer.eos_token_id)}


def pilot(
    model: str | Path | nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    intake: Intake,
    *,
    steps: int,
    settings: Mapping[str, Any] | None = None,
    adapter: Mapping[str, Any] | None = None,
    objectives: Mapping[str, Mapping[str, Any]] | None = None,
    held_out_rows: int = HELD_OUT_ROWS,
    samples: int = SAMPLES,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> PilotReport:
    """Train `steps` steps with each candidate, from the same start on the same rows, and compare.

    Intervals are drawn over the held-out rows: they do not cover the choice of the training's seed.

    Args:
        model: a name, loaded anew for every candidate, or a model, which is copied and left as it is.
        intake: checked and tokenized supervised rows; part of them is held out, by prompt.
        settings: fields of `SFTConfig`, but for `WITHOUT_EFFECT`.
        adapter: settings of `lora_config` (`{}` for its defaults); None trains every weight.
        objectives: by default `candidates()`.
        held_out_rows: at most so many, and at most a fifth of the rows.
        samples: answers a prompt at temperature 1.
        batch_size: held-out rows scored or answered at a time.

    Raises:
        ConfigError: no steps, samples or candidates; settings that the trainer refuses, or that have no effect here.
        DataError: too few rows, or too few different prompts, to hold any out.
    """
    given = candidates() if objectives is None else {name: dict(spec) for name, spec in objectives.items()}
    for name, number in (("steps", steps), ("samples", samples), ("held_out_rows", held_out_rows)):
        if number < 1:
            raise ConfigError(f"pilot: {name} must be at least 1, not {number}")
    idle = sorted(WITHOUT_EFFECT & set(settings or {}))
    if idle:
        raise ConfigError(f"pilot: {idle[0]} has no effect in a pilot; leave it out")
    if not 0 <= seed < SEEDS:
        raise ConfigError(f"pilot: seed must be at least 0 and below 2**32, not {seed}")
    if len(given) < 2 or START in given:
        raise ConfigError(f"pilot: two objectives or more are to be compared, none of them named '{START}'")
    training, judging = _split(intake, held_out_rows, seed)
    train, held_out = prepared(intake, training), prepared(intake, judging)
    found = questions(held_out.dataset, tokenizer, {*held_out.end_tokens, int(tokenizer.eos_token_id)})
    short = [number for number, question in enumerate(found) if question.answer_tokens <= LONGEST_ANSWER]
    asked = short if len(short) >= SHARE_TO_ASK * len(found) else []
    arena = _Arena(tokenizer, held_out, found, asked, samples, batch_size, seed, progress)
    scores: dict[str, Scores] = {}
    losses: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory(prefix="holdfast-pilot-") as scratch:
        for name, spec in given.items():
            args = _arguments(
                spec, steps, settings or {}, seed, Path(scratch) / name.replace(" ", "-"), progress
            )
            trainer = SFTTrainer(
                model=copy.deepcopy(model) if isinstance(model, nn.Module) else str(model),
                args=args,
                train_dataset=train,
                processing_class=tokenizer,
                peft_config=dict(adapter) if adapter is not None else None,
            )
            if not scores:
                scores[START] = _judge(trainer, arena, START)
            train_with_progress(trainer, f"{name:>13}")
            scores[name] = _judge(trainer, arena, name)
            logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
            losses[name] = float(logged[-1]) if logged else None
            _let_go(trainer)
    prompt_of = prompt_numbers(position(record, seed) for record in judging)
    arms, winners = compare(scores, given, losses, seed, prompt_of)
    return PilotReport(
        steps=steps,
        train_rows=len(train.dataset),
        held_out_rows=len(held_out.dataset),
        asked_rows=len(asked),
        longest_answer=LONGEST_ANSWER,
        samples=samples,
        seed=seed,
        settings={"adapter": dict(adapter) if adapter is not None else None, **(settings or {})},
        arms=arms,
        winners=winners,
    )


def _split(intake: Intake, held_out_rows: int, seed: int) -> tuple[StoredRows, StoredRows]:
    """Rows to train and rows to judge, disjoint by prompt."""
    rows = intake.rows
    share = min(HELD_OUT_SHARE, held_out_rows / max(1, len(rows)))
    sides = rows.split({"held_out": share, "train": 1 - share})
    held_out, train = sides["held_out"], sides["train"]
    if len(held_out) < 2 or not len(train):
        raise DataError(
            f"pilot: of {len(rows)} rows {len(held_out)} can be held out by prompt; at least 2 are needed, and rows to "
            "train on: give more rows with different prompts"
        )
    return train, some_rows(held_out, held_out_rows, seed)


def _arguments(
    spec: Mapping[str, Any], steps: int, settings: Mapping[str, Any], seed: int, folder: Path, progress: bool
) -> SFTConfig:
    quiet = {"save_strategy": "no", "eval_strategy": "no", "disable_tqdm": not progress, "seed": seed}
    fixed = {"objective": dict(spec), "max_steps": steps, "output_dir": str(folder)}
    try:
        return SFTConfig(**{**settings, **quiet, **fixed})
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"pilot: {error}") from error


def _judge(trainer: SFTTrainer, arena: _Arena, name: str) -> Scores:
    """The model as it stands on the held-out rows."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    rows = len(arena.questions)
    greedy, sampled = np.zeros(rows), np.zeros(rows)
    with trainer.accelerator.autocast():
        scored = score_tokens(
            model,
            arena.held_out.dataset,
            int(arena.tokenizer.pad_token_id),
            batch_size=arena.batch_size,
        )
        for right, temperature, samples in ((greedy, 0.0, 1), (sampled, 1.0, arena.samples)):
            if arena.asked:
                right[arena.asked] = exact_matches(
                    model,
                    arena.tokenizer,
                    [arena.questions[number] for number in arena.asked],
                    arena.ends,
                    temperature=temperature,
                    samples=samples,
                    seed=arena.seed,
                    batch_size=arena.batch_size,
                    description=f"{name}, answering" if arena.progress else None,
                )
    tokens = np.bincount(scored.row_of, minlength=scored.rows).astype(float)
    logps = np.bincount(scored.row_of, scored.logps, scored.rows).astype(float)
    asked = np.zeros(rows)
    asked[arena.asked] = 1
    return Scores(logps, tokens, greedy, sampled, asked)


def _let_go(trainer: SFTTrainer) -> None:
    """Free the arm's memory for the next one."""
    trainer.model = trainer.model_wrapped = trainer.optimizer = None
    trainer.accelerator.free_memory()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
