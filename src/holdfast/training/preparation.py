"""What a trainer needs before its first step: rows checked and tokenized, then the model and its adapter."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import parse_flag_from_env
from peft import LoraConfig, PeftConfig, PeftModel
from pyarrow import compute
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.data.examine import Checker, checker
from holdfast.data.formats import Kind
from holdfast.data.intake import Intake, take_in, take_in_records
from holdfast.data.lengths import LengthRule
from holdfast.data.processes import cores
from holdfast.data.records import PreferenceRecord, SFTRecord
from holdfast.data.stored import StoredRows
from holdfast.errors import ConfigError, ModelError, did_you_mean
from holdfast.models.adapters import attach_adapter, lora_config, train_in_float32
from holdfast.models.loading import (
    load_model,
    load_tokenizer,
    read_chat_template,
    require_embedded,
    with_padding,
)
from holdfast.models.quantized import is_quantized, keep_trainable, quantization_options
from holdfast.models.token_logprobs import causal_lm_of
from holdfast.models.widened import HALF
from holdfast.training.config import LeanConfig, PreferenceConfig, SFTConfig

logger = logging.getLogger(__name__)

LORA_SETTINGS = frozenset({"rank", "alpha", "dropout", "train_head"})


@dataclass(frozen=True)
class Prepared:
    """Tokenized rows and what became of the raw ones.

    Attributes:
        dataset: one row an example, with the columns its collator reads.
        report: counts for the run record: rows read and refused (by reason), layout, lengths, cuts, digest.
        end_tokens: the tokens that end completions, most frequent first.
        largest_token_id: the largest token id, to hold against the model's vocabulary.
        rows: the checked rows themselves, in the data set's order, for messages that name a place.
    """

    dataset: datasets.Dataset
    report: dict[str, Any]
    end_tokens: tuple[int, ...]
    largest_token_id: int
    rows: StoredRows | None = None


def prepare_pairs(source: Any, tokenizer: PreTrainedTokenizerBase, args: PreferenceConfig) -> Prepared:
    """Preference rows -> columns `prompt_ids`, `chosen_ids`, `rejected_ids`, `row_index`, `row_id`."""
    return prepared(_checked(source, checker_of("preference", tokenizer, args), args))


def prepare_sft(
    source: Any, tokenizer: PreTrainedTokenizerBase, args: SFTConfig, *, quarantine: Path | None = None
) -> Prepared:
    """Supervised rows, or the chosen side of preference rows -> columns `input_ids`, `completion_mask`, ...

    `quarantine` takes the rows that lenient validation sets aside; by default, `quarantine.jsonl` in the output folder.
    """
    return prepared(_checked(source, checker_of("sft", tokenizer, args), args, quarantine))


def checker_of(
    kind: Kind, tokenizer: PreTrainedTokenizerBase, args: LeanConfig, vocab_size: int | None = None
) -> Checker:
    """What checks and tokenizes rows as `args` say."""
    return checker(
        kind,
        tokenizer,
        LengthRule(args.max_length, args.max_prompt_length, args.on_overflow),
        train_on=getattr(args, "train_on", "last"),
        append_eos=args.append_eos,
        vocab_size=vocab_size,
        chat_template_kwargs=args.chat_template_kwargs,
        seed=args.seed,
    )


def processes_of(args: LeanConfig) -> int:
    """Processes that check and tokenize: as configured, or one a core; of a node's ranks one alone does this."""
    return args.dataset_num_proc or cores()


def _checked(source: Any, work: Checker, args: LeanConfig, quarantine: Path | None = None) -> Intake:
    """Rows of any source, or records, checked; bad ones refused or set aside as `args` say."""
    options: dict[str, Any] = {"num_proc": processes_of(args), "cache_dir": args.cache_dir}
    if isinstance(source, StoredRows) or (
        isinstance(source, list) and source and isinstance(source[0], PreferenceRecord | SFTRecord)
    ):
        rows = take_in_records(source, work, **options)
    else:
        rows = take_in(source, work, format=args.data_format, **options)
    rows.require(args.validation, quarantine or Path(args.output_dir) / "quarantine.jsonl")
    return rows


def prepared(intake: Intake, rows: StoredRows | None = None) -> Prepared:
    """What a trainer takes, of a source or of some of its rows."""
    found = intake.report
    own = intake.rows if rows is None else rows
    dataset, lengths = own.tokens, own.lengths()
    if rows is None and found.truncation is not None:
        lengths.dropped = found.truncation["dropped"]
        lengths.equal_after_cut = found.truncation["equal_after_cut"]
    tokens = [name for name in dataset.column_names if name.endswith("_ids")]
    sample = dataset[:1000]
    ends = Counter(row[-1] for name in tokens if name != "prompt_ids" for row in sample[name])
    return Prepared(
        dataset=dataset,
        report={
            "rows": found.rows,
            "refused": dict(found.refused),
            "layout": found.layout,
            "examples": len(dataset),
            "lengths": lengths.as_dict(),
        },
        end_tokens=tuple(token for token, count in ends.most_common() if 10 * count >= ends.total()),
        largest_token_id=max(
            compute.max(compute.list_flatten(dataset.data.column(name))).as_py() for name in tokens
        ),
        rows=own,
    )


def prepare_tokenizer(
    processing_class: PreTrainedTokenizerBase | str | None, model: Any, args: LeanConfig
) -> PreTrainedTokenizerBase:
    """The tokenizer as given, or the model's own, with the configured chat template."""
    if processing_class is None:
        name = model if isinstance(model, str | Path) else causal_lm_of(model).config._name_or_path
        if not name:
            raise ConfigError("the model does not say where its tokenizer is: pass `processing_class`")
        processing_class = str(name)
    if isinstance(processing_class, str):
        return load_tokenizer(
            processing_class,
            revision=args.model_revision,
            chat_template=args.chat_template,
            trust_remote_code=args.trust_remote_code,
        )
    if args.chat_template is not None:
        processing_class.chat_template = read_chat_template(args.chat_template)
    return with_padding(processing_class)


def prepare_model(
    model: str | Path | nn.Module,
    args: LeanConfig,
    peft_config: PeftConfig | Mapping[str, Any] | None,
    prepared: Sequence[Prepared],
    tokenizer: PreTrainedTokenizerBase,
) -> nn.Module:
    """Load the model if it is named, attach the adapter, and make sure that rows and precision fit it.

    `peft_config` may be a mapping of `lora_config`'s settings: `{}` is the SLIME paper's adapter.

    Raises:
        ModelError: tokens beyond the model's vocabulary, or half-precision weights without mixed precision.
        ConfigError: `max_length` beyond the model's positions; quantized weights without an adapter, or sharded.
    """
    mixed = bool(args.bf16 or args.fp16)
    if isinstance(model, str | Path):
        return prepare_model(
            _load(str(model), args, peft_config is None or not mixed), args, peft_config, prepared, tokenizer
        )
    trained: nn.Module = model
    _require_trainable(model, args, peft_config)
    _require_fit(causal_lm_of(model), args, prepared)
    require_embedded(tokenizer, causal_lm_of(model).get_input_embeddings().weight.shape[0])
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise ConfigError(
                "the model has an adapter already: leave out `peft_config` to go on training that one"
            )
        if isinstance(peft_config, Mapping):
            unknown = peft_config.keys() - LORA_SETTINGS
            if unknown:
                name = sorted(unknown)[0]
                raise ConfigError(f"peft_config: unknown setting '{name}'{did_you_mean(name, LORA_SETTINGS)}")
            peft_config = lora_config(model, **peft_config)
        if not isinstance(peft_config, LoraConfig):
            raise ConfigError(f"peft_config must be a LoraConfig, not {type(peft_config).__name__}")
        trained = attach_adapter(model, peft_config)
    if half := train_in_float32(trained):
        logger.warning("%d trained tensors are half precision; they are kept in float32 while training", half)
    if not mixed and any(p.dtype in HALF for p in trained.parameters()):
        raise ModelError(
            "the model's frozen weights are half precision: set bf16=True, or load it in float32"
        )
    return trained


def _load(name: str, args: LeanConfig, whole_precision: bool) -> PreTrainedModel:
    dtype = "float32" if args.model_dtype == "auto" and whole_precision else args.model_dtype
    return load_model(
        name,
        revision=args.model_revision,
        dtype=dtype,
        attention=args.attention,
        trust_remote_code=args.trust_remote_code,
        quantized=_quantized(args),
    )


def _quantized(args: LeanConfig) -> dict[str, Any] | None:
    if args.quantization is None:
        return None
    compute = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    return quantization_options(args.quantization, compute, args.device)


def _require_trainable(model: nn.Module, args: LeanConfig, peft_config: Any) -> None:
    """See that quantized weights are what was asked for, and that something besides them is trained."""
    quantizer: Any = getattr(model, "hf_quantizer", None)  # of a model that was saved quantized, too
    if quantizer is not None and not quantizer.is_trainable:
        method = quantizer.quantization_config.quant_method
        raise ModelError(
            f"the model's weights are quantized by {getattr(method, 'value', method)}, through which nothing can be "
            "trained: take the model as it was before"
        )
    if not is_quantized(model) and quantizer is None:
        if args.quantization is not None:
            raise ConfigError(
                f"quantization: {args.quantization} is for a model given by name; this one is loaded already, and its "
                "weights are not quantized"
            )
        return
    if peft_config is None and not isinstance(model, PeftModel):
        raise ConfigError(
            "quantized weights are frozen, so there is nothing to train: give an adapter (`peft_config={}` is the "
            "SLIME paper's; `adapter` in a run's YAML), or take a model that is not quantized (and leave "
            "`quantization` out)"
        )
    keep_trainable(model)
    sharded = parse_flag_from_env("ACCELERATE_USE_FSDP") or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    if sharded or args.fsdp or args.deepspeed:
        raise ConfigError(
            "quantized weights are not shared out among processes here: launch without FSDP and DeepSpeed; each "
            "process then holds all of them"
        )


def _require_fit(model: PreTrainedModel, args: LeanConfig, prepared: Sequence[Prepared]) -> None:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    largest = max((p.largest_token_id for p in prepared), default=0)
    if largest >= vocabulary:
        raise ModelError(
            f"the tokenizer gave token {largest}, but the model embeds {vocabulary} tokens: take the model's own "
            "tokenizer, or resize its embeddings first"
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and args.max_length > positions:
        raise ConfigError(f"max_length is {args.max_length}, but the model has {positions} positions")
