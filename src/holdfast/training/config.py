"""Settings of the two trainers: transformers' TrainingArguments and the few that are holdfast's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from transformers import TrainingArguments

from holdfast.data.lengths import MAX_LENGTH
from holdfast.errors import ConfigError
from holdfast.objectives.base import Kind
from holdfast.objectives.pairs import PairObjective
from holdfast.objectives.registry import objective_spec, resolve_objective
from holdfast.objectives.token import TokenObjective


@dataclass
class LeanConfig(TrainingArguments):
    """What both trainers share. Lengths are in tokens; everything else is named as in TrainingArguments.

    Attributes:
        objective: a name, a mapping `{name: ..., <field>: ...}`, or an objective instance.
        max_length: prompt and completion together.
        on_overflow: `cut` longer rows (counted and reported), `drop` them, or make them an `error`.
        validation: `strict` stops at a bad row and lists all of them; `lenient` sets them aside.
        data_format: name of the row layout, when it should not be found out.
        model_dtype, model_revision, attention: used when `model` is given by name.
        chat_template: a `.jinja` file, or a tokenizer whose template to take.
        chat_template_kwargs: inputs of the chat template for every row (`{enable_thinking: false}`); a row's own go
            before them.
        padding_free: compute each micro-batch as one row without padding, where the model can (the loss is the same).
        append_eos: add the tokenizer's end token where the chat template ends a turn without one.
        dataset_num_proc: processes that check and tokenize; None: one a core, shared out among a node's ranks.
        cache_dir: where tokenized rows and reference log-probs are kept; None: `HOLDFAST_CACHE`, or the user's cache.
        bf16: mixed precision; None means: wherever the GPU supports it.
    """

    objective_kind: ClassVar[Kind]

    objective: Any = None
    max_length: int = MAX_LENGTH
    on_overflow: Literal["cut", "drop", "error"] = "cut"
    validation: Literal["strict", "lenient"] = "strict"
    data_format: str | None = None
    model_dtype: str = "auto"
    model_revision: str | None = None
    attention: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    padding_free: bool = True
    append_eos: bool = False
    dataset_num_proc: int | None = None
    cache_dir: str | None = None

    bf16: bool | None = None
    logging_steps: float = 10
    logging_first_step: bool = True
    # A filtered NaN is a hidden NaN, and the filter reads the loss from the device at every micro-step.
    logging_nan_inf_filter: bool = False
    remove_unused_columns: bool | None = False
    report_to: str | list[str] | None = "none"
    disable_tqdm: bool | None = False
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and _gpu_has_bfloat16()
        super().__post_init__()
        for name, least in (
            ("per_device_train_batch_size", 1),
            ("gradient_accumulation_steps", 1),
            ("learning_rate", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.max_length < 2:
            raise ConfigError(
                f"max_length is {self.max_length}; a row needs a prompt token and a completion token"
            )
        try:
            self.objective = resolve_objective(self.objective)
        except ValueError as error:
            raise ConfigError(f"objective: {error}") from error
        if self.objective.kind != self.objective_kind:
            raise ConfigError(
                f"{type(self).__name__} takes a {self.objective_kind} objective; '{self.objective.name}' is a "
                f"{self.objective.kind} objective (see `holdfast explain`)"
            )

    def to_dict(self) -> dict[str, Any]:
        """As TrainingArguments.to_dict, with the objective as the mapping that rebuilds it."""
        return super().to_dict() | {"objective": dict(objective_spec(self.objective))}


@dataclass
class PreferenceConfig(LeanConfig):
    """Settings of `PreferenceTrainer`; the defaults are the SLIME paper's preference stage.

    Attributes:
        objective: a pair objective; `slime` with the paper's weights by default.
        max_prompt_length: cap on the prompt, cut from the left.
        shared_prefix: compute each pair's prompt once, where the model can (the loss is the same).
        reference_batch_size: pairs a batch while reference log-probs are computed; None: as in evaluation.
    """

    objective_kind: ClassVar[Kind] = "pair"

    objective: str | Mapping[str, Any] | PairObjective = "slime"
    max_prompt_length: int | None = None
    shared_prefix: bool = True
    reference_batch_size: int | None = None

    learning_rate: float = 5e-7
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 2
    max_grad_norm: float = 0.0


@dataclass
class SFTConfig(LeanConfig):
    """Settings of `SFTTrainer`.

    Attributes:
        objective: a token objective; `nll` by default.
        train_on: the `last` assistant turn of a conversation, or `all` of them.
    """

    objective_kind: ClassVar[Kind] = "token"

    objective: str | Mapping[str, Any] | TokenObjective = "nll"
    train_on: Literal["last", "all"] = "last"
    max_prompt_length: int | None = None

    learning_rate: float = 2e-5


def _gpu_has_bfloat16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
