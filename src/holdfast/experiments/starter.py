"""The commented YAML that a run begins with: each common key, what it says, and its default.

Only the words stand here. Defaults are read from the classes that check the file, so a key that is commented out shows
what holds without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

from holdfast.experiments.arguments import SAVING
from holdfast.experiments.config import (
    AdapterSection,
    DataSection,
    FromScratch,
    ModelSection,
    RunConfig,
    parse_config,
)
from holdfast.objectives.hyperparameters import meaning_of
from holdfast.objectives.registry import list_objectives, objective_class
from holdfast.training.config import LeanConfig, PreferenceConfig, SFTConfig

# In the place of what is not given; a run refuses such names.
MODEL, DATA = "<MODEL>", "<DATA>"
COLUMN = 38  # where a line's comment begins


class Words(NamedTuple):
    """A section's keys in their order, and what each says; the rare ones are written commented out."""

    common: Mapping[str, str]
    rare: Mapping[str, str]


_HEAD = """\
# A run of holdfast: supervised fine-tuning (sft), then preference alignment (align), of one model.
#
#   holdfast run FILE --dry-run                    check everything, estimate memory and time, train nothing
#   holdfast run FILE                              train, and write the report
#   holdfast run FILE align.learning_rate=1.0e-6   another value, once
#
# What is commented out shows its default. To skip a stage, delete its section. Both stages take further fields of
# transformers' TrainingArguments.
"""

_MODEL = Words(
    {"name": "a folder, or a name on the hub"},
    {
        "revision": "of a name on the hub: a branch, a tag or a commit",
        "dtype": "of the weights; auto: float32 without an adapter or mixed precision, else as they are",
        "save_dtype": "of the saved weights; auto: as most of the trained model has",
        "attention": "sdpa, flash_attention_2, flex_attention or eager; null: transformers' choice",
        "quantization": "nf4, fp4 or int8 for the frozen weights, under an adapter",
        "tokenizer": "a folder or a name on the hub; null: the model's",
        "chat_template": "a .jinja file, or a tokenizer whose template to take; null: the tokenizer's",
        "chat_template_kwargs": "inputs of the template for every row, as {enable_thinking: false}",
        "append_eos": "add the end token where the template ends a turn without one",
        "trust_remote_code": "run Python files that the model brings; revision must then be a whole commit",
    },
)
_DATA = Words(
    {
        "source": "a file, a folder, or a name on the hub",
        "sft_fraction": "share of the prompts that sft trains on, where both stages run",
        "eval_fraction": "share of the prompts held out, scored before and after alignment",
        "max_length": "tokens of prompt and answer together",
        "max_prompt_length": "longer prompts are cut from the left; null: one that fills max_length is a bad row",
        "on_overflow": "longer rows: cut (counted and reported), drop or error",
        "validation": "bad rows: strict stops and lists all of them, lenient sets them aside",
    },
    {
        "split": "of a data set on the hub, or of a folder",
        "revision": "of a data set on the hub",
        "format": "the rows' layout; null: found out",
        "limit": "rows to take; null: all",
    },
)
_ADAPTER = Words(
    {
        "rank": "of LoRA's matrices",
        "alpha": "LoRA's scale is alpha / rank",
        "dropout": "in front of LoRA's matrices",
        "train_head": "train the LM head in full beside them",
    },
    {},
)
_STAGE = Words(
    {
        "learning_rate": "at its highest",
        "num_train_epochs": "times through the rows",
        "per_device_train_batch_size": "rows of a micro-batch; a pair is one row",
        "gradient_accumulation_steps": "micro-batches of an optimizer step",
        "lr_scheduler_type": "linear, cosine, constant, constant_with_warmup, ...",
        "warmup_steps": "a number, or below 1 a share of all steps",
        "eval_strategy": 'held-out rows are scored in training: "no", steps (every eval_steps) or epoch',
    },
    {
        "eval_steps": "a number, or below 1 a share of all steps; null: as logging_steps",
        "per_device_eval_batch_size": "rows scored at once",
        "max_steps": "optimizer steps; -1: by num_train_epochs",
        "optim": "adamw_8bit, adafactor, ...",
        "weight_decay": "of the optimizer",
        "max_grad_norm": "gradients are clipped to this norm; 0: never",
        "bf16": "mixed precision; null: where the GPU has it",
        "activation_checkpointing": "true: less memory, about a third more time",
        "auto_find_batch_size": "halve a micro-batch that does not fit; the global batch stays",
        "train_sampling_strategy": "random, sequential or group_by_length",
        "padding_free": "a micro-batch as one row without padding, where the model can; same loss",
        "head_implementation": "log-probs: reference, chunked or triton; auto: the best there is",
        "on_nonfinite": "at NaN or infinity: raise before the step, or skip it",
        "on_spike": "at a loss or gradient norm far beyond the last: warn, raise or off",
        "spike_threshold": "how far: robust standard deviations over the median",
        "spike_window": "steps that a step is compared with",
        "logging_steps": "steps between lines of the log",
        "report_to": "wandb, tensorboard, ...",
        "save_strategy": 'checkpoints: "no", steps, epoch or best',
        "save_steps": "a number, or below 1 a share of all steps",
        "save_total_limit": "checkpoints that are kept; null: all",
        "dataset_num_proc": "processes that check and tokenize; null: one a core",
        "cache_dir": "of tokenized rows and reference log-probs; null: HOLDFAST_CACHE, or the user's cache",
    },
)
_SFT = Words(
    {"train_on": "the last assistant turn of a conversation, or all of them"},
    {"percentiles": "a probe.json, for an objective with quantiles; null: measured before the first step"},
)
_ALIGN = Words(
    {},
    {
        "shared_prefix": "each pair's prompt is computed once, where the model can; same loss",
        "reference_batch_size": "pairs, for log-probs of the reference; null: per_device_eval_batch_size",
    },
)


def starter(model: str | None, data: str | None, output_dir: str) -> str:
    """The file's text; `MODEL` and `DATA` stand for what is None.

    Raises:
        ConfigError: a name that no run takes.
    """
    parse_config(
        {
            "model": {"name": "any" if model is None else model},
            "data": {"source": "any" if data is None else data},
            "sft": {},
            "output_dir": output_dir,
        },
        where="holdfast init",
    )
    model_defaults = _defaults(ModelSection) | {"name": MODEL if model is None else model}
    data_defaults = _defaults(DataSection) | {"source": DATA if data is None else data}
    scratch = _yaml(FromScratch.model_validate({}).model_dump())
    lines = [
        "model:",
        *_section(_MODEL, model_defaults, given=("name",)),
        _line("  # from_scratch", None, f"in place of a name, random weights: {scratch}"),
        "",
        "data:",
        *_section(_DATA, data_defaults, given=("source",)),
        "",
        "# LoRA on attention and MLP. `adapter: null` trains every weight.",
        "adapter:",
        *_section(_ADAPTER, _defaults(AdapterSection)),
        "",
        "# Supervised fine-tuning, on demonstrations or the chosen answers of pairs.",
        "sft:",
        *_stage(_SFT, SFTConfig),
        "",
        "# Preference alignment, on pairs.",
        "align:",
        *_stage(_ALIGN, PreferenceConfig),
        "",
        _line("output_dir", output_dir, "final/ (the trained model), run.json, report.html, checkpoints"),
        _line("seed", _defaults(RunConfig)["seed"], "of splits, order and weights"),
    ]
    return "\n".join([_HEAD, *lines, ""])


def _stage(own: Words, config_class: type[LeanConfig]) -> Iterator[str]:
    """A stage's lines: its objective with every hyperparameter, and its keys."""
    defaults: dict[str, Any] = {field.name: field.default for field in fields(config_class)}
    defaults |= SAVING
    objective = objective_class(defaults["objective"])
    yield "  objective:"
    names = ", ".join(list_objectives(objective.kind))
    yield _line("    name", objective.name, f"{names} (holdfast explain NAME)")
    if objective.presets:
        yield _line("    # preset", None, ", ".join(objective.presets))
    for field in fields(objective):
        yield _line(f"    # {field.name}", field.default, meaning_of(field))
    yield from _section(Words({**own.common, **_STAGE.common}, {**own.rare, **_STAGE.rare}), defaults)


def _section(words: Words, values: Mapping[str, Any], given: tuple[str, ...] = ()) -> Iterator[str]:
    """A section's lines; what is `given` has no default to name."""
    for key, comment in words.common.items():
        default = "" if key in given else f"; default {_yaml(values[key])}"
        yield _line(f"  {key}", values[key], comment + default)
    for key, comment in words.rare.items():
        yield _line(f"  # {key}", values[key], comment)


def _line(key: str, value: Any, comment: str) -> str:
    return f"{f'{key}: {_yaml(value)}':<{COLUMN}} # {comment}"


def _defaults(section: type[BaseModel]) -> dict[str, Any]:
    return {key: field.default for key, field in section.model_fields.items()}


def _yaml(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Enum):
        value = value.value
    # text that looks like a number to a run, and to YAML 1.1 not, would lose its quotes
    style = '"' if isinstance(value, str) and not value.isidentifier() else None
    dumped = yaml.safe_dump(
        value,
        default_style=style,
        default_flow_style=True,
        sort_keys=False,
        width=math.inf,
        allow_unicode=True,
    )
    return dumped.splitlines()[0]
