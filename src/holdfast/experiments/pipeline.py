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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from holdfast.data.faults import Problem
from holdfast.data.records import PreferenceRecord, Record, SFTRecord
from holdfast.data.sources import read_rows
from holdfast.data.splits import digest, split_by_prompt
from holdfast.data.validation import check_rows, enforce, write_quarantine
from holdfast.errors import ConfigError, DataError
from holdfast.experiments.config import RunConfig
from holdfast.experiments.record import environment, folder_digest, write_record
from holdfast.experiments.verdict import as_record, changes, verdict
from holdfast.models.export import save_final
from holdfast.models.loading import DTYPES, load_tokenizer
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model
from holdfast.training.config import PreferenceConfig, SFTConfig
from holdfast.training.lean_trainer import LeanTrainer
from holdfast.training.metrics_file import MetricsFile
from holdfast.training.preference_trainer import PreferenceTrainer
from holdfast.training.preparation import Prepared, prepare_pairs, prepare_sft
from holdfast.training.progress import train_with_progress
from holdfast.training.scoring import score_pairs
from holdfast.training.sft_trainer import SFTTrainer

Say = Callable[[str], None]


@dataclass(frozen=True)
class Splits:
    """The rows of each side, disjoint by prompt."""

    sft: list[SFTRecord]
    align: list[PreferenceRecord]
    held_out: list[Any]  # preference pairs, or demonstrations where there is no align stage
    refused: list[Problem]
    report: dict[str, Any]


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
    splits = read_splits(config)
    for line in splits.report["summary"]:
        say(line)
    if processes.is_main_process:
        claim_folder(folder, overwrite, say)
        if splits.refused:
            write_quarantine(splits.refused, folder / "quarantine.jsonl")
    processes.wait_for_everyone()
    record: dict[str, Any] = {
        "name": folder.name,
        "config": config.model_dump(mode="json"),
        "environment": environment(),
        "data": splits.report,
        "stages": {},
        "verdicts": [],
    }

    def publish() -> None:
        if processes.is_main_process:
            write_record(record, folder / "run.json")

    publish()
    start = _start(config, splits, folder, say)
    if Path(start).is_dir():
        record["start"] = folder_digest(Path(start))
    # Every row is tokenized before anything trains: a fault of the second stage must not wait for the first.
    tokenizer = _tokenizer(config, start)
    rows = _prepare(splits, tokenizer, sft_args, align_args)
    for name, prepared in rows.items():
        say(f"{name}: {prepared.report['examples']} rows tokenized; {_cuts(prepared)}")

    def trainer_of(trainer_class: Any, stage: str, args: Any) -> Any:
        return trainer_class(
            model=start,
            args=args,
            train_dataset=rows[stage],
            eval_dataset=rows.get(f"{stage}, held out"),
            processing_class=tokenizer,
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


def read_splits(config: RunConfig) -> Splits:
    """Read and check every row, then share the rows out by prompt."""
    data = config.data
    kind = "preference" if config.align is not None else "sft"
    rows = read_rows(data.source, split=data.split, revision=data.revision)
    checked: Any = check_rows(rows, kind, data.format)  # type: ignore[call-overload]
    records = enforce(checked, data.validation)[: data.limit]
    shares = _shares(config)
    sides: dict[str, list[Any]] = split_by_prompt(records, shares, config.seed)
    for name, share in shares.items():
        if share and not sides[name] and name != "held_out":
            raise DataError(
                f"{data.source}: no row falls on the {name} side (a share of {share:g} of {len(records)})"
            )
    return Splits(
        sft=[_demonstration(record) for record in sides.get("sft", [])],
        align=sides.get("align", []),
        held_out=sides.get("held_out", []),
        refused=checked.problems,
        report={
            "source": data.source,
            "layout": checked.format,
            "rows": checked.rows,
            "refused": checked.counts,
            "splits": {name: {"rows": len(side), "digest": digest(side)} for name, side in sides.items()},
            "summary": [
                f"{checked.rows} rows of layout '{checked.format}' from {data.source}"
                + (f"; {len(checked.problems)} set aside: {checked.counts}" if checked.problems else ""),
                "split by prompt: " + ", ".join(f"{len(side)} {name}" for name, side in sides.items()),
            ],
        },
    )


def _shares(config: RunConfig) -> dict[str, float]:
    held_out = config.data.eval_fraction
    if config.sft is None:
        return {"held_out": held_out, "align": 1 - held_out}
    if config.align is None:
        return {"held_out": held_out, "sft": 1 - held_out}
    sft = config.data.sft_fraction
    return {"held_out": held_out, "sft": sft, "align": 1 - held_out - sft}


def claim_folder(folder: Path, overwrite: bool, say: Say) -> None:
    """Make the run folder, or move the one that is there aside if asked to."""
    if (folder / "run.json").exists() or (folder / "final").exists():
        if not overwrite:
            raise ConfigError(
                f"'{folder}' holds a run already: choose another output_dir, or pass --overwrite"
            )
        number = 1
        while (aside := folder.with_name(f"{folder.name}.before-{number}")).exists():
            number += 1
        folder.rename(aside)
        say(f"moved the run that was there to {aside}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir '{folder}' cannot be made: {error.strerror}") from error


def _start(config: RunConfig, splits: Splits, folder: Path, say: Say) -> str:
    """The model to start from: as named, or made from scratch with a tokenizer trained on the training rows."""
    if config.model.name is not None:
        return config.model.name
    scratch = config.model.from_scratch
    assert scratch is not None
    records: list[Record] = [*splits.sft, *splits.align]
    texts = [text for record in records for text in _texts(record)]
    tokenizer = tiny_bpe_tokenizer(texts, scratch.vocab_size, max_length=config.data.max_length)
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


def _texts(record: Record) -> list[str]:
    if isinstance(record, PreferenceRecord):
        messages = [*record.prompt, *record.chosen, *record.rejected]
    elif record.text is not None:
        return [record.text]
    else:
        messages = record.messages
    return [str(message["content"]) for message in messages]


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
        }
        try:
            return config_class(**{"save_strategy": "no"} | whole_run | settings)
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            raise ConfigError(f"{stage}: {str(error).strip() or type(error).__name__}") from error

    return build("sft", SFTConfig, config.sft), build("align", PreferenceConfig, config.align)


def _tokenizer(config: RunConfig, start: str) -> PreTrainedTokenizerBase:
    """The named model's, with the configured template; or the one beside a model made from scratch."""
    if config.model.name is None:
        return load_tokenizer(start)
    return load_tokenizer(
        config.model.tokenizer or start,
        revision=None if config.model.tokenizer else config.model.revision,
        chat_template=config.model.chat_template,
    )


def _prepare(
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    sft_args: SFTConfig | None,
    align_args: PreferenceConfig | None,
) -> dict[str, Prepared]:
    rows = {}
    if sft_args is not None:
        rows["sft"] = prepare_sft(splits.sft, tokenizer, sft_args)
        if splits.held_out:
            demonstrations = [_demonstration(record) for record in splits.held_out]
            rows["sft, held out"] = prepare_sft(demonstrations, tokenizer, sft_args)
    if align_args is not None:
        rows["align"] = prepare_pairs(splits.align, tokenizer, align_args)
        if splits.held_out:
            rows["align, held out"] = prepare_pairs(splits.held_out, tokenizer, align_args)
    return rows


def _cuts(prepared: Prepared) -> str:
    """What the length rule cut, for people: share of rows and tokens of each side."""
    lengths = prepared.report["lengths"]
    cut = [
        f"{side} cut in {counts['rows_cut']} ({counts['tokens_cut'] / counts['tokens']:.0%} of its tokens)"
        for side, counts in lengths["sides"].items()
        if counts["rows_cut"]
    ]
    for name, label in (
        ("dropped", "dropped for their length"),
        ("equal_after_cut", "the same once cut, left out"),
    ):
        if lengths[name]:
            cut.append(f"{lengths[name]} {label}")
    return "; ".join(cut) or "none cut"


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


def _demonstration(record: PreferenceRecord | SFTRecord) -> SFTRecord:
    return record.chosen_as_sft() if isinstance(record, PreferenceRecord) else record
