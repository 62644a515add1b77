"""What a trainer needs before its first step: rows checked and tokenized, then the model and its adapter."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from peft import LoraConfig, PeftConfig, PeftModel
from pyarrow import compute
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.data.faults import Problem
from holdfast.data.lengths import LengthReport, LengthRule
from holdfast.data.prepared import prepared_pairs, prepared_sft
from holdfast.data.records import PreferenceRecord, SFTRecord
from holdfast.data.sources import read_rows
from holdfast.data.validation import check_rows, count_reasons, enforce, write_quarantine
from holdfast.errors import ConfigError, ModelError, did_you_mean
from holdfast.models.adapters import attach_adapter, lora_config, train_in_float32
from holdfast.models.loading import load_model, load_tokenizer, read_chat_template, with_padding
from holdfast.models.token_logprobs import HALF, causal_lm_of
from holdfast.training.cache import cache_folder
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
    """

    dataset: datasets.Dataset
    report: dict[str, Any]
    end_tokens: tuple[int, ...]
    largest_token_id: int


def prepare_pairs(source: Any, tokenizer: PreTrainedTokenizerBase, args: PreferenceConfig) -> Prepared:
    """Preference rows -> columns `prompt_ids`, `chosen_ids`, `rejected_ids`, `row_index`, `row_id`."""
    records, report = _read_records(source, "preference", args)
    problems = _problems(args)
    dataset, lengths = prepared_pairs(
        records, tokenizer, _length_rule(args), problems=problems, **_encoding(args)
    )
    return _prepared(dataset, lengths, _refuse(report, problems, args), ("chosen_ids", "rejected_ids"))


def prepare_sft(source: Any, tokenizer: PreTrainedTokenizerBase, args: SFTConfig) -> Prepared:
    """Supervised rows, or the chosen side of preference rows -> columns `input_ids`, `completion_mask`, ..."""
    records, report = _read_records(source, "sft", args)
    problems = _problems(args)
    dataset, lengths = prepared_sft(
        records, tokenizer, _length_rule(args), train_on=args.train_on, problems=problems, **_encoding(args)
    )
    return _prepared(dataset, lengths, _refuse(report, problems, args), ("input_ids",))


def _encoding(args: LeanConfig) -> dict[str, Any]:
    return {
        "append_eos": args.append_eos,
        "num_proc": args.dataset_num_proc or 1,
        "cache_dir": cache_folder(args.cache_dir) / "rows",
    }


def _read_records(source: Any, kind: str, args: LeanConfig) -> tuple[list[Any], dict[str, Any]]:
    """Rows of any source -> checked records, and their counts. Records pass through as they are."""
    if isinstance(source, list) and source and isinstance(source[0], PreferenceRecord | SFTRecord):
        return source, {"rows": len(source), "refused": {}}
    checked: Any = check_rows(read_rows(source), kind, args.data_format)  # type: ignore[call-overload]
    records = enforce(checked, args.validation, _quarantine(args) if checked.problems else None)
    return records, {"rows": checked.rows, "refused": checked.counts, "layout": checked.format}


def _problems(args: LeanConfig) -> list[Problem] | None:
    """Where rows that cannot be tokenized are put; None makes them an error."""
    return [] if args.validation == "lenient" else None


def _refuse(report: dict[str, Any], problems: list[Problem] | None, args: LeanConfig) -> dict[str, Any]:
    if not problems:
        return report
    write_quarantine(problems, _quarantine(args), append=True)
    return report | {"refused": dict(Counter(report["refused"]) + Counter(count_reasons(problems)))}


def _quarantine(args: LeanConfig) -> Path:
    return Path(args.output_dir) / "quarantine.jsonl"


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
            processing_class, revision=args.model_revision, chat_template=args.chat_template
        )
    if args.chat_template is not None:
        processing_class.chat_template = read_chat_template(args.chat_template)
    return with_padding(processing_class)


def prepare_model(
    model: str | Path | nn.Module,
    args: LeanConfig,
    peft_config: PeftConfig | Mapping[str, Any] | None,
    prepared: Sequence[Prepared],
) -> nn.Module:
    """Load the model if it is named, attach the adapter, and make sure that rows and precision fit it.

    `peft_config` may be a mapping of `lora_config`'s settings: `{}` is the SLIME paper's adapter.

    Raises:
        ModelError: tokens beyond the model's vocabulary, or half-precision weights without mixed precision.
        ConfigError: `max_length` beyond the model's positions.
    """
    mixed = bool(args.bf16 or args.fp16)
    if isinstance(model, str | Path):
        return prepare_model(
            _load(str(model), args, peft_config is None or not mixed), args, peft_config, prepared
        )
    trained: nn.Module = model
    _require_fit(causal_lm_of(model), args, prepared)
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
    return load_model(name, revision=args.model_revision, dtype=dtype, attention=args.attention)


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


def _length_rule(args: PreferenceConfig | SFTConfig) -> LengthRule:
    return LengthRule(args.max_length, args.max_prompt_length, args.on_overflow)


def _prepared(
    dataset: datasets.Dataset, lengths: LengthReport, report: dict[str, Any], completions: tuple[str, ...]
) -> Prepared:
    table = dataset.data
    tokens = [name for name in table.column_names if name.endswith("_ids")]
    sample = dataset[:1000]
    ends = Counter(row[-1] for name in completions for row in sample[name])
    return Prepared(
        dataset=dataset,
        report=report | {"examples": len(dataset), "lengths": lengths.as_dict()},
        end_tokens=tuple(token for token, count in ends.most_common() if 10 * count >= ends.total()),
        largest_token_id=max(
            compute.max(compute.list_flatten(table.column(name))).as_py() for name in tokens
        ),
    )
