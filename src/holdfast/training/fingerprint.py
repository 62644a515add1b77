"""What a resumed run may not change: `fingerprint.json` in a checkpoint, one key a field.

    {"adapter.r": 64, "data_seed": 42, "global_batch_size": 16, "learning_rate": 5e-07, ...}

Left out is what does not change what is computed: how often to log and save, where, and how a global batch is cut
into micro-batches or shared among processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel
from pyarrow import compute
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from holdfast.errors import CheckpointError
from holdfast.models.token_logprobs import causal_lm_of
from holdfast.objectives.registry import objective_spec
from holdfast.training.config import LeanConfig
from holdfast.training.optimizer_state import plain_name
from holdfast.training.processes import whole

FINGERPRINT = "fingerprint.json"
ROWS_AT_ONCE = 10_000

# Settings by their names in the configuration.
OPTIMIZATION = (
    *("optim", "optim_args", "optim_target_modules", "learning_rate", "weight_decay", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps"),
    *("seed", "train_sampling_strategy", "dataloader_drop_last", "neftune_noise_alpha"),
)
# Of an adapter's configuration, what says where it came from and how it is run, not what it computes.
INCIDENTAL = frozenset(
    "auto_mapping base_model_name_or_path revision inference_mode runtime_config peft_version task_type".split()
)


def fingerprint(
    args: LeanConfig, model: nn.Module, objective: Any, rows: Any, processes: int, precision: str
) -> dict[str, Any]:
    """The fields of a run that is about to begin. All processes must call this together.

    Args:
        model: as it is before training, without what wraps it.
        rows: the training set.
        precision: accelerate's name for it (`no`, `bf16`, ...).
    """
    config = causal_lm_of(model).config.get_text_config()
    rows_at_once = args.per_device_train_batch_size * processes
    given = {
        **{name: getattr(args, name, None) for name in OPTIMIZATION},
        "data_seed": args.seed if args.data_seed is None else args.data_seed,
        "global_batch_size": rows_at_once * args.gradient_accumulation_steps,
        # what does not fill a micro-batch of every process is dropped: another cut drops other rows
        "rows_at_once": rows_at_once if args.dataloader_drop_last else None,
        "precision": precision,
        "objective": dict(objective_spec(objective)),
        "model": _class_name(causal_lm_of(model)),
        "dropout": {name: value for name, value in config.to_dict().items() if "dropout" in name},
        "base_weights": weights_digest(model),
        "rows": {"count": len(rows), "digest": rows_digest(rows)},
        "adapter": _adapter(model),
    }
    plain: dict[str, Any] = json.loads(json.dumps(_flat(given), default=_as_text))
    return plain


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of the parameters a run starts from: the frozen ones where there is an adapter, else all.

    All processes must call this together; the main one's result counts.
    """
    frozen_only = isinstance(model, PeftModel)
    digest = hashlib.sha256()
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    for name, parameter in sorted(parameters.items()):
        if frozen_only and parameter.requires_grad:
            continue
        tensor = whole(parameter)
        if PartialState().is_main_process:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def rows_digest(rows: Any) -> str:
    """SHA-256 of the training rows' tokens, in their order."""
    names = sorted(name for name in rows.column_names if name.endswith("_ids") or name == "completion_mask")
    digest = hashlib.sha256(" ".join(names).encode())
    for batch in rows.select_columns(names).with_format("arrow").iter(ROWS_AT_ONCE):
        for name in names:
            column = batch[name]
            for numbers in (compute.list_value_length(column), compute.list_flatten(column)):
                digest.update(numbers.cast("int64").to_numpy().astype(np.int64).tobytes())
    return digest.hexdigest()


def write_fingerprint(fields: Mapping[str, Any], folder: Path) -> None:
    """Write `fingerprint.json`."""
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    (folder / FINGERPRINT).write_text(text, encoding="utf-8")


def require_same_run(fields: Mapping[str, Any], folder: Path) -> None:
    """Hold a run's fields against a checkpoint's.

    Raises:
        CheckpointError: some differ; the message lists every one.
    """
    path = folder / FINGERPRINT
    try:
        saved = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}") from error
    absent = object()
    differing = [
        f"  {name}: {_shown(saved, name)} in the checkpoint, {_shown(fields, name)} now"
        for name in sorted(saved.keys() | fields.keys())
        if saved.get(name, absent) != fields.get(name, absent)
    ]
    if differing:
        raise CheckpointError(
            f"'{folder}' is of another run, and this one cannot go on from it:\n"
            + "\n".join(differing)
            + "\nGive these settings (data, model) their former values, or begin anew in another output folder"
        )


def _class_name(model: nn.Module) -> str:
    """Of the class as it was loaded: FSDP 2 makes one of its own of it, once the model is shared out."""
    return next(cls.__name__ for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))


def _adapter(model: nn.Module) -> Any:
    """The settings of the adapters, by name where there are several; those that are unset or off are left out."""
    if not isinstance(model, PeftModel):
        return None
    configs = {
        name: {key: value for key, value in config.to_dict().items() if key not in INCIDENTAL and value}
        for name, config in model.peft_config.items()
    }
    return configs["default"] if configs.keys() == {"default"} else configs


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one, with dots in its names."""
    result: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            result |= _flat(inner, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = sorted(inner) if isinstance(inner, set | frozenset) else inner
    return result


def _as_text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return json.dumps(fields[name]) if name in fields else "absent"


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
