"""What a resumed run may change, and what makes it another run: held against `run.json`, field by field.

The trainer holds its own checkpoint against the run as well; here everything is named before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from holdfast.errors import CheckpointError
from holdfast.experiments.values import shown
from holdfast.models.folder import folder_digest

Record = Mapping[str, Any]

# Keys of the sections that may change freely: the folder may have moved, and so may the rows and the model, whose
# content is compared instead (`data.splits`, `data.tokenizer` and `start` of the record).
SECTIONS_MAY_CHANGE = frozenset(
    "output_dir data.source data.split data.revision data.format data.limit data.validation "
    "model.name model.revision model.tokenizer model.chat_template model.attention".split()
)

# Keys of a stage that may change freely.
STAGES_MAY_CHANGE = frozenset(
    # what is written, where, and how often
    "logging_strategy logging_steps logging_first_step log_on_each_node log_level log_level_replica disable_tqdm "
    "report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id "
    "include_num_input_tokens_seen skip_memory_metrics debug "
    "save_strategy save_steps save_total_limit save_on_each_node cache_dir "
    "push_to_hub hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision "
    # what a number or a row that cannot be used leads to
    "on_nonfinite on_spike spike_threshold spike_window "
    # how it is computed: other processes, other hardware (the same up to rounding)
    "per_device_train_batch_size gradient_accumulation_steps auto_find_batch_size "  # their product is compared
    "gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs "
    "torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps tf32 "
    "use_liger_kernel liger_kernel_config padding_free shared_prefix head_implementation reference_batch_size use_cpu "
    "eval_accumulation_steps dataset_num_proc "
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "dataloader_multiprocessing_context "
    "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout "
    "fsdp fsdp_config deepspeed parallelism_config local_rank".split()
)

# Parts of the record, in words.
WORDS = {
    "data.splits": "the rows",
    "data.tokenizer": "the tokenizer or its chat template",
    "start": "the model to start from",
}


def require_same(before: Record, now: Record, folder: Path) -> None:
    """Refuse to go on with a run as another one.

    Args:
        before: the record in the run's folder.
        now: the record of the run as configured now, as far as it is known; what it lacks is not compared.

    Raises:
        CheckpointError: names every field that differs, its value then and now.
    """
    found = [
        f"  {name}: {shown(then)} in {folder.name}, {shown(value)} now"
        for name, then, value in differences(before, now)
    ]
    if found:
        raise CheckpointError(
            f"'{folder}' holds another run than the one configured now:\n"
            + "\n".join(found)
            + "\nPut back what has changed to go on with it, or start anew in another output_dir, or with --overwrite."
        )


def differences(before: Record, now: Record) -> Iterator[tuple[str, Any, Any]]:
    """(name, value then, value now) of every field that makes two records other runs."""
    then, today = before["config"], now["config"]
    for stage in ("sft", "align"):
        if (then[stage] is None) != (today[stage] is None):
            words = {True: "no stage", False: "a stage"}
            yield stage, words[then[stage] is None], words[today[stage] is None]
    for section in ("model", "data", "adapter", "seed"):
        yield from _changed(section, then[section], today[section])
    for stage, settings in now["settings"].items():
        if stage in before["settings"]:
            yield from _changed(stage, before["settings"][stage], settings)
    if "data" in before and "data" in now:
        for part in ("splits", "tokenizer"):
            yield from _changed(f"data.{part}", before["data"][part], now["data"][part])
    if "start" in before and "start" in now:
        # A folder is its content, wherever it lies; a name on the hub is its commit.
        for key in ("digest", "commit", "name"):
            if key in before["start"] or key in now["start"]:
                yield from _changed(f"start.{key}", before["start"].get(key), now["start"].get(key))
                break


def _changed(path: str, then: Any, today: Any) -> Iterator[tuple[str, Any, Any]]:
    """What differs at `path` and below, and may not.

    A whole setting that one of the two versions of holdfast has not heard of is not compared.
    """
    section, _, key = path.partition(".")
    if path in SECTIONS_MAY_CHANGE or (section in ("sft", "align") and key in STAGES_MAY_CHANGE):
        return
    if isinstance(then, dict) and isinstance(today, dict):
        for name in sorted(then.keys() | today.keys() if key else then.keys() & today.keys()):
            yield from _changed(f"{path}.{name}", then.get(name), today.get(name))
    elif then != today:
        words = next((words for part, words in WORDS.items() if path.startswith(part)), None)
        yield f"{words} ({path})" if words else path, then, today


def require_saved(before: Record, finals: Mapping[str, Path]) -> None:
    """See that the model of every finished stage is still the one that was saved.

    Args:
        finals: stage -> the folder of its model.

    Raises:
        CheckpointError: it is gone, or its files are others.
    """
    for stage, folder in finals.items():
        digest = saved_digest(before, stage)
        if digest is None:
            continue
        if not folder.is_dir():
            raise CheckpointError(
                f"{stage} is finished, but its model '{folder}' is gone: put it back, or start anew with --overwrite"
            )
        if folder_digest(folder) != digest:
            raise CheckpointError(
                f"'{folder}' is not what the run saved when {stage} was finished (its files have another SHA-256 than "
                "run.json says): put it back, or start anew with --overwrite"
            )


def saved_digest(record: Record, stage: str) -> str | None:
    """The digest of a finished stage's model; None where the stage is not finished."""
    saved = (record["stages"].get(stage) or {}).get("saved") or {}
    digest: str | None = saved.get("digest")
    return digest
