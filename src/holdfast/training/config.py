"""Settings of the two trainers: transformers' TrainingArguments and the few that are holdfast's own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from holdfast.data.lengths import MAX_LENGTH
from holdfast.data.processes import require_processes
from holdfast.errors import ConfigError, DataError, did_you_mean
from holdfast.models.quantized import require_bitsandbytes, require_quantization
from holdfast.objectives.base import Kind
from holdfast.objectives.pairs import PairObjective
from holdfast.objectives.registry import objective_spec, resolve_objective
from holdfast.objectives.token import TokenObjective
from holdfast.ops.linear_logprob import require_implementation
from holdfast.ranks import on_cpu
from holdfast.training.percentiles import Percentiles
from holdfast.training.spikes import LONGEST_WINDOW, WARM_UP

# transformers' names of those that live in bitsandbytes.
BITSANDBYTES_OPTIMIZERS = r"adamw_(bnb_)?8bit|(paged_)?(adamw|ademamix|lion)(_8bit|_32bit)?|rmsprop_bnb.*"

MOST_ROWS = 1_000_000  # of a batch: far beyond any, and still a number that loaders can count with

# transformers' own, and those of `torch.utils.checkpoint.checkpoint` that a file can hold.
CHECKPOINTING = (
    *("every_n_layers", "offload"),
    *("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop"),
)


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
        quantization: load a named model's frozen weights in 4 or 8 bits (`nf4`, `fp4`, `int8`), under an adapter.
        chat_template: a `.jinja` file, or a tokenizer whose template to take.
        chat_template_kwargs: inputs of the chat template for every row (`{enable_thinking: false}`); a row's own go
            before them.
        head_implementation: how log-probs come from hidden states: one of `linear_logprob`'s implementations.
        padding_free: compute each micro-batch as one row without padding, where the model can (the loss is the same).
        append_eos: add the tokenizer's end token where the chat template ends a turn without one.
        trust_remote_code: run the Python files that a named model brings; `model_revision` must then be one commit in
            full, or the digest of a folder's code.
        on_nonfinite: at a loss or gradient that is NaN or infinite, `raise` before the optimizer step, or `skip` it:
            weights and moments stay as they are, and the log counts `skipped_steps`. Its rows are written down.
        on_spike: at a loss or gradient norm far beyond those before, `warn`, `raise` before the optimizer step, or look
            for none (`off`). Its rows are written down, and the log counts `spikes`.
        spike_threshold: how far is far: robust standard deviations over the median.
        spike_window: steps that a step is compared with.
        dataset_num_proc: processes that check and tokenize; None: one a core.
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
    quantization: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    head_implementation: Literal["auto", "reference", "chunked", "triton"] = "auto"
    padding_free: bool = True
    append_eos: bool = False
    trust_remote_code: bool = False
    on_nonfinite: Literal["raise", "skip"] = "raise"
    on_spike: Literal["warn", "raise", "off"] = "warn"
    spike_threshold: float = 20.0
    spike_window: int = 128
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
        if on_cpu():
            self.use_cpu = True
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and gpu_has_bfloat16()
        super().__post_init__()
        for name, least, most in (
            ("per_device_train_batch_size", 1, MOST_ROWS),
            ("per_device_eval_batch_size", 1, MOST_ROWS),
            ("gradient_accumulation_steps", 1, MOST_ROWS),
            ("learning_rate", 0, math.inf),
            ("save_total_limit", 1, math.inf),
            ("spike_threshold", 1, math.inf),
            ("spike_window", WARM_UP, LONGEST_WINDOW),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                beyond = f"at least {least}" if most == math.inf else f"from {least} to {most}"
                raise ConfigError(f"{name} must be {beyond}, not {value}")
        if self.dataloader_persistent_workers and not self.dataloader_num_workers:
            raise ConfigError("dataloader_persistent_workers: there are none; set dataloader_num_workers too")
        require_processes("dataloader_num_workers", self.dataloader_num_workers)
        if self.dataset_num_proc is not None:
            require_processes("dataset_num_proc", self.dataset_num_proc, least=1)
        for name, known in (
            ("on_nonfinite", ("raise", "skip")),
            ("on_spike", ("warn", "raise", "off")),
            # another one of transformers' makes batches that the processes would share out anew
            ("train_sampling_strategy", ("random", "sequential", "group_by_length")),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        self._check_checkpointing()
        self._check_head()
        if self.quantization is not None:
            require_quantization(self.quantization)
        optimizer = OptimizerNames(self.optim).value
        if re.fullmatch(BITSANDBYTES_OPTIMIZERS, optimizer):
            require_bitsandbytes(f"optim: {optimizer}")
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

    def _check_checkpointing(self) -> None:
        """See that what `activation_checkpointing_kwargs` asks for is known, and can be had, before the first step."""
        options: Any = self.activation_checkpointing_kwargs or {}
        if options and not self.activation_checkpointing:
            raise ConfigError(
                "activation_checkpointing_kwargs has no effect without `activation_checkpointing: true`"
            )
        for name in options:
            if name not in CHECKPOINTING:
                raise ConfigError(
                    f"activation_checkpointing_kwargs: unknown key '{name}'{did_you_mean(name, CHECKPOINTING)}"
                )
        if options.get("offload") and (self.use_cpu or not torch.accelerator.is_available()):
            raise ConfigError(
                "activation_checkpointing_kwargs: offload moves activations from an accelerator to the host, and there "
                "is none; leave it out"
            )

    def _check_head(self) -> None:
        """See that the LM head can be computed as asked for, before a model is loaded."""
        try:
            require_implementation(self.head_implementation)
        except ValueError as error:
            raise ConfigError(f"head_implementation: {error}") from error
        if self.head_implementation != "triton":
            return
        if find_spec("triton") is None:
            raise ConfigError(
                "head_implementation: triton needs the package triton: pip install triton, or leave it out"
            )
        if self.use_cpu or not torch.cuda.is_available():
            raise ConfigError(
                "head_implementation: triton needs a CUDA GPU, and none is in use: take `chunked`, or leave it out"
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
        percentiles: a `probe.json` of the same model and rows, for an objective whose bounds are quantiles; None: they
            are measured before the first step.
    """

    objective_kind: ClassVar[Kind] = "token"

    objective: str | Mapping[str, Any] | TokenObjective = "nll"
    train_on: Literal["last", "all"] = "last"
    percentiles: str | None = None
    max_prompt_length: int | None = None

    learning_rate: float = 2e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.percentiles is None:
            return
        assert isinstance(self.objective, TokenObjective)  # resolved
        if not self.objective.needs_percentiles:
            raise ConfigError("percentiles: the objective has no quantile for a bound; leave it out")
        try:
            self.objective.with_percentiles(Percentiles.of_probe(self.percentiles).at)
        except (DataError, ValueError) as error:
            raise ConfigError(f"percentiles: {error}") from error


def gpu_has_bfloat16() -> bool:
    """Whether `bf16` is on unless the settings say otherwise."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
