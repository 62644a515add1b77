"""What a run needs on the disk at least, and whether it is there: asked before rows are prepared."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from holdfast.errors import CheckpointError
from holdfast.experiments.config import RunConfig
from holdfast.experiments.estimate_model import configuration_of
from holdfast.models.adapters import attach_adapter, lora_config
from holdfast.training.config import LeanConfig
from holdfast.training.optimizer_state import moments_saved

FLOAT32 = 4  # bytes; trained weights and the optimizer's moments are kept in it


def require_room(config: RunConfig, stages: Mapping[str, LeanConfig], folder: Path) -> None:
    """See that one checkpoint and every stage's trained model fit.

    Where the model cannot be told from its configuration alone, nothing is said: the trainer looks once more when the
    model is loaded.

    Raises:
        CheckpointError: they do not; says how much is needed, and how much is free.
    """
    try:
        checkpoint, final = bytes_needed(config, stages)
    except Exception:  # a configuration that somebody else wrote can fail in any way; loading it says how
        return
    needed, free = checkpoint + final * len(stages), shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"'{folder}' has too little room: a checkpoint (about {checkpoint:,} bytes) and the trained model of each "
            f"stage (about {final:,}) need {needed:,} bytes, and {free:,} are free. Free some, or choose another "
            "output_dir"
        )


def bytes_needed(config: RunConfig, stages: Mapping[str, LeanConfig]) -> tuple[int, int]:
    """(bytes of the largest checkpoint, bytes of a trained model), from below; 0 for checkpoints where none are saved.

    Raises:
        Exception: the model's configuration cannot be read, or not be built.
    """
    settings = configuration_of(config)
    with torch.device("meta"):  # shapes without memory
        model = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
        weights = sum(parameter.numel() for parameter in model.parameters())
        stored = config.model.save_dtype if config.model.save_dtype != "auto" else config.model.dtype
        dtype = settings.dtype if stored == "auto" else getattr(torch, stored)
        trained = weights
        if config.adapter is not None:
            adapted = attach_adapter(model, lora_config(model, **config.adapter.model_dump()))
            trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    saved = [args for args in stages.values() if args.save_strategy != "no"]
    checkpoint = max((trained * FLOAT32 * (1 + moments_saved(args)) for args in saved), default=0)
    return checkpoint, weights * (dtype or torch.float32).itemsize
