"""The settings of a run's stages as their trainers' configs; and as `run.json` has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.errors import ConfigError
from holdfast.experiments.config import RunConfig
from holdfast.experiments.stage_checks import check_hub, check_launch, check_optimizer_arguments
from holdfast.experiments.stage_settings import stage_keys
from holdfast.training.config import LeanConfig, PreferenceConfig, SFTConfig

# A run can be stopped at any time and loses at most a tenth of a stage; two checkpoints a stage stay on the disk.
SAVING: Mapping[str, Any] = {"save_strategy": "steps", "save_steps": 0.1, "save_total_limit": 2}


class StageArguments(NamedTuple):
    """The trainers' configs; None where a stage is left out."""

    sft: SFTConfig | None
    align: PreferenceConfig | None

    def stages(self) -> dict[str, LeanConfig]:
        """The stages that the run has, in their order."""
        return {stage: args for stage, args in self._asdict().items() if args is not None}


def stage_arguments(config: RunConfig, folder: Path) -> StageArguments:
    """Both stages' configs.

    Raises:
        ConfigError: a setting that cannot be used here; starts with the stage.
    """
    sft = _build("sft", SFTConfig, config, folder)
    align = _build("align", PreferenceConfig, config, folder)
    if sft is not None and align is not None and sft.mixed_precision != align.mixed_precision:
        raise ConfigError(
            f"align.bf16, align.fp16: both stages run in one precision, but sft is '{sft.mixed_precision}' and align "
            f"'{align.mixed_precision}'"
        )
    return StageArguments(sft, align)


def _build(stage: str, config_class: Any, config: RunConfig, folder: Path) -> Any:
    settings = config.sft if stage == "sft" else config.align
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
        "quantization": config.model.quantization,
        "append_eos": config.model.append_eos,
        "trust_remote_code": config.model.trust_remote_code,
        "chat_template_kwargs": config.model.chat_template_kwargs,
    }
    check_launch(settings, stage)
    try:
        args = config_class(**_saving(settings) | whole_run | settings)
    except (ConfigError, ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        raise ConfigError(f"{stage}: {str(error).strip() or type(error).__name__}") from error
    check_optimizer_arguments(args, stage)
    check_hub(args, stage)
    return args


def _saving(settings: Mapping[str, Any]) -> dict[str, Any]:
    """When checkpoints are saved, where the stage does not say; its best one can only be chosen of those measured."""
    saving = dict(SAVING)
    if settings.get("load_best_model_at_end"):
        saving["save_strategy"] = settings.get("eval_strategy", "no")
        # as often as is measured, which without eval_steps is as often as is logged
        saving["save_steps"] = settings.get("eval_steps") or settings.get(
            "logging_steps", LeanConfig.logging_steps
        )
    return saving


def effective_settings(args: LeanConfig) -> dict[str, Any]:
    """Every setting of a stage as it is used, defaults too; none of the run-wide ones, and no secret.

    `global_batch_size` is the rows of an optimizer step, over all micro-batches and processes; `rows_at_once`, where
    the last rows may be dropped, those of a micro-batch of every process.
    """
    values = args.to_dict()
    own = {key: values[key] for key in sorted(stage_keys(type(args)))}
    rows_at_once = args.train_batch_size * args.world_size
    own["global_batch_size"] = rows_at_once * args.gradient_accumulation_steps
    if args.dataloader_drop_last:
        own["rows_at_once"] = rows_at_once  # which rows are dropped depends on it
    plain: dict[str, Any] = json.loads(json.dumps(own, default=str))
    return plain
