"""The two-stage run: rows in; supervised fine-tuning, then preference alignment; an aligned model and a record out.

A run folder:

    run.json            what was run, on what, and what came of it
    metrics.jsonl       every logging step of both stages
    quarantine.jsonl    rows set aside (lenient validation only)
    start/              the from-scratch model, where the run starts from one
    sft/, align/        each stage's checkpoints; sft/final/ is where align starts
    final/              the trained model: AutoModelForCausalLM.from_pretrained loads it
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from holdfast.errors import ConfigError
from holdfast.experiments.config import RunConfig
from holdfast.experiments.record import environment, folder_digest, write_record
from holdfast.experiments.rows import prepare_stages, read_run_rows
from holdfast.experiments.verdict import as_record, changes, verdict
from holdfast.models.export import save_final
from holdfast.models.loading import DTYPES
from holdfast.models.tiny import tiny_model
from holdfast.training.config import PreferenceConfig, SFTConfig
from holdfast.training.lean_trainer import LeanTrainer
from holdfast.training.metrics_file import MetricsFile
from holdfast.training.preference_trainer import PreferenceTrainer
from holdfast.training.progress import train_with_progress
from holdfast.training.scoring import score_pairs
from holdfast.training.sft_trainer import SFTTrainer

Say = Callable[[str], None]


def run(config: RunConfig, *, overwrite: bool = False, say: Say = print) -> Path:
    """Run every configured stage; returns the run folder.

    Args:
        overwrite: move a folder that is there aside; without it, such a folder is an error.
        say: receives each line meant for people.

    Raises:
        HoldfastError: whatever the user can mend, before the first step wherever that is possible.
    """
    processes = PartialState()
    say = say if processes.is_main_process else _silence
    folder = Path(config.output_dir).expanduser()
    sft_args, align_args = _stage_arguments(config, folder)
    require_free(folder, overwrite)
    # Every row is checked and tokenized before a model is loaded, for both stages: no fault waits for the first.
    rows = read_run_rows(config, sft_args, align_args)
    for line in rows.summary():
        say(line)
    if processes.is_main_process:
        claim_folder(folder, overwrite, say)
        rows.intake.require(config.data.validation, folder / "quarantine.jsonl")
    processes.wait_for_everyone()
    record: dict[str, Any] = {
        "name": folder.name,
        "config": config.model_dump(mode="json"),
        "environment": environment(),
        "data": rows.record(),
        "stages": {},
        "verdicts": [],
    }

    def publish() -> None:
        if processes.is_main_process:
            write_record(record, folder / "run.json")

    publish()
    stages = prepare_stages(rows, sft_args, align_args, folder / "quarantine.jsonl", say)
    start = _start(config, rows.tokenizer, folder, say)
    if Path(start).is_dir():
        record["start"] = folder_digest(Path(start))

    def trainer_of(trainer_class: Any, stage: str, args: Any) -> Any:
        return trainer_class(
            model=start,
            args=args,
            train_dataset=stages[stage],
            eval_dataset=stages.get(f"{stage}, held out"),
            processing_class=rows.tokenizer,
            peft_config=config.adapter.model_dump() if config.adapter is not None else None,
            callbacks=[MetricsFile(folder / "metrics.jsonl", stage)],
        )

    def finish(stage: str, trainer: LeanTrainer, result: dict[str, Any], out: Path) -> None:
        record["stages"][stage] = result
        publish()  # what was measured outlives a failure to save
        result["saved"] = _save(trainer, config, out)
        publish()

    if sft_args is not None:
        out = folder / "final" if align_args is None else folder / "sft" / "final"
        sft = trainer_of(SFTTrainer, "sft", sft_args)
        finish("sft", sft, _fine_tune(sft), out)
        start = str(out)
    if align_args is not None:
        aligner = trainer_of(PreferenceTrainer, "align", align_args)
        result = _align(aligner, config.seed)
        record["verdicts"] = result["held_out"]["verdict"]
        for line in [change["sentence"] for change in result["held_out"]["changes"]] + record["verdicts"]:
            say(line)
        finish("align", aligner, result, folder / "final")
    record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    publish()
    say(f"trained model: {folder / 'final'}")
    return folder


def _silence(line: str) -> None:
    """What processes other than the first say."""


def require_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds a run, unless it is to be moved aside."""
    if not overwrite and _holds_run(folder):
        raise ConfigError(f"'{folder}' holds a run already: choose another output_dir, or pass --overwrite")


def _holds_run(folder: Path) -> bool:
    return (folder / "run.json").exists() or (folder / "final").exists()


def claim_folder(folder: Path, overwrite: bool, say: Say) -> None:
    """Make the run folder, or move the one that is there aside if asked to."""
    require_free(folder, overwrite)
    if _holds_run(folder):
        number = 1
        while (aside := folder.with_name(f"{folder.name}.before-{number}")).exists():
            number += 1
        folder.rename(aside)
        say(f"moved the run that was there to {aside}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir '{folder}' cannot be made: {error.strerror}") from error


def _start(config: RunConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, say: Say) -> str:
    """The model to start from: as named, or made from scratch for the tokenizer."""
    if config.model.name is not None:
        return config.model.name
    scratch = config.model.from_scratch
    assert scratch is not None
    model = tiny_model(
        scratch.family,
        len(tokenizer),
        hidden_size=scratch.hidden_size,
        layers=scratch.layers,
        seed=config.seed,
        max_position_embeddings=max(2048, config.data.max_length),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    _publish(model, tokenizer, folder / "start")
    say(f"from scratch: {scratch.family}, {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")
    return str(folder / "start")


def _stage_arguments(config: RunConfig, folder: Path) -> tuple[SFTConfig | None, PreferenceConfig | None]:
    """Both stages' settings as the trainers' configs, or an error that names the stage."""

    def build(stage: str, config_class: Any, settings: dict[str, Any] | None) -> Any:
        if settings is None:
            return None
        whole_run = {
            "output_dir": str(folder / stage),
            "seed": config.seed,
            "max_length": config.data.max_length,
            "max_prompt_length": config.data.max_prompt_length,
            "on_overflow": config.data.on_overflow,
            "validation": config.data.validation,
            "model_dtype": config.model.dtype,
            # only the named model has a revision; a stage that starts from a folder of this run has none
            "model_revision": config.model.revision if stage == "sft" or config.sft is None else None,
            "attention": config.model.attention,
            "append_eos": config.model.append_eos,
            "chat_template_kwargs": config.model.chat_template_kwargs,
        }
        try:
            return config_class(**{"save_strategy": "no"} | whole_run | settings)
        except (ConfigError, ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            raise ConfigError(f"{stage}: {str(error).strip() or type(error).__name__}") from error

    sft, align = build("sft", SFTConfig, config.sft), build("align", PreferenceConfig, config.align)
    if sft is not None and align is not None and sft.mixed_precision != align.mixed_precision:
        raise ConfigError(
            f"align.bf16, align.fp16: both stages run in one precision, but sft is '{sft.mixed_precision}' and align "
            f"'{align.mixed_precision}'"
        )
    return sft, align


def _fine_tune(trainer: SFTTrainer) -> dict[str, Any]:
    """Train, and measure the held-out demonstrations."""
    result = _train(trainer, "sft")
    if trainer.eval_dataset is not None:
        result["held_out"] = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    return result


def _align(trainer: PreferenceTrainer, seed: int) -> dict[str, Any]:
    """Train, and score the held-out pairs before and after."""
    held_out = trainer.eval_dataset
    before = score_pairs(trainer, held_out, "held-out pairs before") if held_out is not None else None
    result = _train(trainer, "align")
    result["held_out"] = {"changes": [], "verdict": ["Not measured: there are no held-out pairs."]}
    if before is not None:
        measured = changes(before, score_pairs(trainer, held_out, "held-out pairs after"), seed)
        result["held_out"] = {"changes": as_record(measured), "verdict": verdict(measured)}
    return result


def _train(trainer: LeanTrainer, stage: str) -> dict[str, Any]:
    output = train_with_progress(trainer, stage)
    return {
        "steps": output.global_step,
        "training_loss": output.training_loss,
        "seconds": output.metrics["train_runtime"],
        "rows": {name: prepared.report for name, prepared in trainer.prepared.items()},
        "padding_free": trainer.padding_free,
        "shared_prefix": getattr(trainer, "shared_prefix", None),
        "last": next((log for log in reversed(trainer.state.log_history) if "loss" in log), None),
    }


def _save(trainer: LeanTrainer, config: RunConfig, out: Path) -> dict[str, Any]:
    """Merge, save and check; then let go of the model, so that the next stage has the memory."""
    dtype = DTYPES[config.model.save_dtype] if config.model.save_dtype != "auto" else None
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    stops = trainer.prepared["train"].end_tokens
    saved = _publish(model, trainer.processing_class, out, dtype=dtype, stop_token_ids=stops)
    trainer.model = trainer.model_wrapped = trainer.optimizer = None
    trainer.accelerator.free_memory()
    gc.collect()
    return saved


def _publish(model: Any, tokenizer: Any, out: Path, **options: Any) -> dict[str, Any]:
    """Save on the first process; every process goes on once the folder is there."""
    processes = PartialState()
    exported = save_final(model, tokenizer, out, **options) if processes.is_main_process else None
    processes.wait_for_everyone()
    if exported is None:
        return {}
    return {"dtype": exported.dtype, "drift": exported.drift, "digest": folder_digest(out)}
