"""The keys of a stage (`sft:`, `align:`), held against its trainer's config class before anything is loaded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from enum import Enum
from importlib.util import find_spec
from typing import Annotated, Any, Literal, get_type_hints

import torch
from pydantic import AfterValidator, Field
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import get_scheduler

from holdfast.errors import ConfigError, did_you_mean
from holdfast.experiments.stage_checks import check_compile_backend
from holdfast.experiments.values import check_value, members, shown
from holdfast.objectives.registry import objective_spec, resolve_objective
from holdfast.training.config import BITSANDBYTES_OPTIMIZERS, MOST_ROWS, LeanConfig
from holdfast.training.spikes import LONGEST_WINDOW, WARM_UP

# Set once for the whole run, so a stage must not set them again.
RUN_WIDE = {
    "output_dir": "output_dir",
    "seed": "seed",
    "data_seed": "seed",
    "max_length": "data.max_length",
    "max_prompt_length": "data.max_prompt_length",
    "on_overflow": "data.on_overflow",
    "validation": "data.validation",
    "data_format": "data.format",
    "model_dtype": "model.dtype",
    "model_revision": "model.revision",
    "attention": "model.attention",
    "quantization": "model.quantization",
    "chat_template": "model.chat_template",
    "chat_template_kwargs": "model.chat_template_kwargs",
    "append_eos": "model.append_eos",
    "trust_remote_code": "model.trust_remote_code",
}

SECRETS = frozenset({"hub_token", "push_to_hub_token"})

# Fields of TrainingArguments that would be passed over or fail late: why.
WITHOUT_EFFECT = {
    "label_smoothing_factor": "the objective is the whole loss; choose one with `objective`",
    "label_names": "rows carry their own masks",
    "remove_unused_columns": "rows hold what the objective needs and nothing else",
    "length_column_name": "the lengths of rows are counted from their tokens",
    "resume_from_checkpoint": "`--resume` goes on with a run",
    "ignore_data_skip": "a resumed run goes on at the row where it stopped",
    "restore_callback_states_from_checkpoint": "a resumed run is the run it would have been",
    "enable_jit_checkpoint": "SIGTERM and SIGINT are answered with a checkpoint anyway",
}


def _step_count(steps: int) -> int:
    if steps == 0 or steps < -1:
        raise ValueError("must be at least 1, or -1 to go by num_train_epochs")
    return steps


def _interval(steps: float | None) -> float | None:
    if steps is not None and (steps <= 0 or (steps > 1 and steps != int(steps))):
        raise ValueError("must be a whole number of steps, or a share of all of them between 0 and 1")
    return steps


# Numbers out of these bounds are accepted by TrainingArguments, and fail or mean something else later on.
_BOUNDS: dict[str, Any] = {
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "reference_batch_size",
            "eval_accumulation_steps",
            "dataloader_prefetch_factor",
            "torch_empty_cache_steps",
        ),
        Field(ge=1, le=MOST_ROWS),
    ),
    **dict.fromkeys(
        (
            "learning_rate",
            "weight_decay",
            "adam_epsilon",
            "max_grad_norm",
            "warmup_steps",
            "eval_delay",
            "dataloader_num_workers",
        ),
        Field(ge=0),
    ),
    "dataset_num_proc": Field(ge=1),
    "save_total_limit": Field(ge=1),
    "spike_threshold": Field(ge=1),
    "spike_window": Field(ge=WARM_UP, le=LONGEST_WINDOW),
    **dict.fromkeys(("num_train_epochs", "neftune_noise_alpha"), Field(gt=0)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Field(ge=0, lt=1)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), AfterValidator(_interval)),
    "max_steps": AfterValidator(_step_count),
}

# Types narrower than the field's: what TrainingArguments takes besides would fail later on.
_TYPES: dict[str, Any] = {
    "lr_scheduler_kwargs": dict[str, Any] | None,
    "train_sampling_strategy": Literal["random", "sequential", "group_by_length"],
    **dict.fromkeys(
        ("log_level", "log_level_replica"),
        Literal["passive", "detail", "debug", "info", "warning", "error", "critical"],
    ),
}

# Optimizers that live in a package of their own, by name.
_OPTIMIZER_PACKAGES = (
    (r"adamw_torch_[48]bit", "torchao"),
    (BITSANDBYTES_OPTIMIZERS, "bitsandbytes"),
    (r"galore_.*", "galore_torch"),
    (r"apollo_.*", "apollo_torch"),
    (r"schedule_free_.*", "schedulefree"),
    (r"(ada)?lomo", "lomo_optim"),
    (r"stable_adamw", "optimi"),
    (r"grokadamw", "grokadamw"),
    (r"adamw_anyprecision", "torchdistx"),
    (r"adamw_torch_xla", "torch_xla"),
    (r"adamw_torch_npu_fused", "torch_npu"),
)


def stage_keys(config_class: type[LeanConfig]) -> frozenset[str]:
    """The keys a stage may set."""
    return frozenset(field.name for field in dataclasses.fields(config_class)) - RUN_WIDE.keys() - SECRETS


def stage_settings(settings: Mapping[str, Any], config_class: type[LeanConfig], stage: str) -> dict[str, Any]:
    """Check a stage's keys and values against the trainer's config class, and its objective against the registry.

    Raises:
        ConfigError: an unknown key (names the nearest), a key set elsewhere, a value that cannot be used here; starts
            with the key's path.
    """
    types = get_type_hints(config_class)
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(config_class)}
    checked: dict[str, Any] = {}
    for key, value in settings.items():
        where = f"{stage}.{key}"
        if key in RUN_WIDE:
            raise ConfigError(f"{where}: is set for the whole run, as `{RUN_WIDE[key]}`")
        if key in SECRETS:
            raise ConfigError(f"{where}: a secret would stand in run.json; log in, or set HF_TOKEN, instead")
        if key not in defaults:
            raise ConfigError(f"{where}: unknown key{did_you_mean(str(key), stage_keys(config_class))}")
        if key in WITHOUT_EFFECT and value != defaults[key]:
            raise ConfigError(f"{where}: has no effect here: {WITHOUT_EFFECT[key]}")
        checked[key] = value if key == "objective" else _value(key, value, types[key], where)
    if "report_to" in checked:
        _check_reports(checked["report_to"], f"{stage}.report_to")
    settings = defaults | checked
    _check_packages(settings, stage)
    check_compile_backend(settings["torch_compile_backend"], stage)
    _check_schedule(settings, stage)
    if settings["save_strategy"] == "best" and not settings["metric_for_best_model"]:
        raise ConfigError(f"{stage}.save_strategy: best needs {stage}.metric_for_best_model, such as loss")
    return checked | {"objective": _objective(settings, defaults["objective"], config_class, stage)}


def _value(key: str, value: Any, annotation: Any, where: str) -> Any:
    """As the field's type, within its bounds; the name of a member where TrainingArguments takes it or its name."""
    annotation = _TYPES.get(key, annotation)
    enums = [
        member for member in members(annotation) if isinstance(member, type) and issubclass(member, Enum)
    ]
    if enums and str in members(annotation):
        return check_value(value, enums[0], where).value
    if key in _BOUNDS:
        annotation = Annotated[annotation, _BOUNDS[key]]
    return check_value(value, annotation, where)


def _objective(
    settings: Mapping[str, Any], default: str, config_class: type[LeanConfig], stage: str
) -> dict[str, Any]:
    spec = settings["objective"]
    try:
        objective = resolve_objective({"name": default} | spec if isinstance(spec, dict) else spec)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{stage}.objective: {error}") from error
    if objective.kind != config_class.objective_kind:
        raise ConfigError(
            f"{stage}.objective: '{objective.name}' is a {objective.kind} objective; this stage takes a "
            f"{config_class.objective_kind} objective (see `holdfast explain`)"
        )
    return dict(objective_spec(objective))


def _check_reports(names: str | list[str] | None, where: str) -> None:
    if names is None:
        raise ConfigError(f"{where}: expected a name or a list of names, got null; write none for no reports")
    names = [names] if isinstance(names, str) else names
    if names in (["none"], ["all"]):
        return
    # transformers knows these, but does not always count them among those available.
    available = {*get_available_reporting_integrations(), "flyte", "azure_ml"}
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            hint = did_you_mean(name, {*INTEGRATION_TO_CALLBACK, "none", "all"})
            raise ConfigError(f"{where}: nothing called {shown(name)} takes reports{hint}")
        if name not in available:
            raise ConfigError(f"{where}: {name} is not installed or not set up here")


def _check_packages(settings: Mapping[str, Any], stage: str) -> None:
    """What the trainer would import after loading."""
    optimizer = settings["optim"]
    needed = {
        "optim": next(
            (package for name, package in _OPTIMIZER_PACKAGES if re.fullmatch(name, optimizer)), None
        ),
        "use_liger_kernel": "liger_kernel" if settings["use_liger_kernel"] else None,
    }
    for key, package in needed.items():
        if package is not None and find_spec(package) is None:
            raise ConfigError(f"{stage}.{key}: needs the package {package}, which is not installed")


def _check_schedule(settings: Mapping[str, Any], stage: str) -> None:
    """Build the schedule once for nothing, as the trainer would after loading."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        get_scheduler(settings["lr_scheduler_type"], optimizer, 0, 1, settings["lr_scheduler_kwargs"])
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{stage}.lr_scheduler_kwargs: {error}") from error
