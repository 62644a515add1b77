"""Reference log-probs: what the policy gave each completion before training, computed once and kept on disk.

The reference of DPO and IPO is the model training starts from, so it needs no second model: one pass before the
first step, in the trainer's own precision, at the same rows. Objectives that need none never come here.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from holdfast.files import cache_folder, replacing
from holdfast.models.token_logprobs import causal_lm_of
from holdfast.ranks import once
from holdfast.training.lean_trainer import LeanTrainer
from holdfast.training.scoring import score_pairs

logger = logging.getLogger(__name__)

# Settings of generation, which the trainer aligns with the tokenizer: no log-prob depends on them.
IDLE = frozenset(
    {"use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "transformers_version"}
)


def add_reference_logps(
    trainer: LeanTrainer, datasets: Mapping[str, Any], batch_size: int | None = None
) -> dict[str, Any]:
    """`datasets` with columns `reference_chosen` and `reference_rejected`: summed log-probs, nats.

    Read from the cache when the same model has scored the same rows before.
    """
    precision = trainer.accelerator.mixed_precision
    # Of the model as it is loaded: to score, it may have to be shared out among the processes.
    keys = once(
        lambda: {name: reference_key(trainer.model, own, precision) for name, own in datasets.items()}
    )
    return {name: _with_logps(trainer, own, keys[name], batch_size) for name, own in datasets.items()}


def _with_logps(trainer: LeanTrainer, dataset: Any, key: str, batch_size: int | None) -> Any:
    path = cache_folder(trainer.args.cache_dir) / f"reference-{key}.safetensors"
    columns = once(lambda: _cached(path))  # all compute it, or none
    if columns is None:
        scores = score_pairs(trainer, dataset, "reference log-probs", batch_size)
        columns = {"chosen": scores.chosen.clone(), "rejected": scores.rejected.clone()}
        if trainer.is_world_process_zero():
            with replacing(path) as beside:
                save_file(columns, beside, metadata={"sha256": _digest(columns)})
    return dataset.add_column("reference_chosen", columns["chosen"].tolist()).add_column(
        "reference_rejected", columns["rejected"].tolist()
    )


def _cached(path: Path) -> dict[str, Tensor] | None:
    """What the cache holds; a file that cannot be read, or is not as it was written, is computed again, and said so."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            columns = {name: file.get_tensor(name) for name in ("chosen", "rejected")}
            known = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as error:
        fault = str(error)
    else:
        if known == _digest(columns):
            return columns
        fault = "it does not have the SHA-256 that it was written with"
    logger.warning("the cached reference '%s' cannot be used (%s); computing it again", path, fault)
    return None


def _digest(columns: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(columns):
        digest.update(columns[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def reference_key(model: nn.Module, dataset: Any, precision: str) -> str:
    """A hash of all a reference log-prob depends on: weights, what the model does with them, tokens, precision."""
    digest = hashlib.sha256()
    causal_lm = causal_lm_of(model)
    adapters = {}
    if isinstance(model, PeftModel):
        adapters = {name: str(sorted(vars(config).items())) for name, config in model.peft_config.items()}
    described = {
        "format": 2,
        "precision": str(precision),
        "model": type(causal_lm).__name__,
        "config": {
            k: v for k, v in causal_lm.config.to_dict().items() if not k.startswith("_") and k not in IDLE
        },
        "adapters": adapters,
        "active": str(getattr(model, "active_adapters", None)),
    }
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(str(tensor.dtype).encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    for row in dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]):
        digest.update(json.dumps([row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]).encode())
    return digest.hexdigest()[:32]
