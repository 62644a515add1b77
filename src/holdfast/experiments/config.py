"""The YAML of a run: what may stand in it, checked before anything is loaded.

    model: Qwen/Qwen3-4B-Base              # a name, a folder, or {from_scratch: {...}}
    data: {source: rows.json}
    adapter: {rank: 64, alpha: 128}        # null trains every weight
    sft: {num_train_epochs: 3, learning_rate: 2.0e-4}
    align: {objective: {name: slime}, learning_rate: 5.0e-7}
    output_dir: runs/mine

`sft` and `align` take every field of `SFTConfig` and `PreferenceConfig`; leave one out to skip its stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from holdfast.data.formats import get_format
from holdfast.data.lengths import MAX_LENGTH
from holdfast.errors import ConfigError, did_you_mean
from holdfast.experiments.stage_settings import stage_settings
from holdfast.experiments.values import fault_words, members, mistaken_for_number
from holdfast.experiments.yaml_file import apply_override, read_yaml
from holdfast.models.quantized import require_quantization
from holdfast.models.remote_code import require_pinned, require_pinned_kernel
from holdfast.models.tiny import tiny_config
from holdfast.training.config import PreferenceConfig, SFTConfig


class Section(BaseModel):
    """A part of the file. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        if mistaken_for_number(value, cls.model_fields[info.field_name].annotation):
            raise ValueError("expected a number")
        return value


def _place(value: Any) -> Any:
    """A path or a name on the hub, and neither what `holdfast init` left open nor a URL.

    No URL is read; and one may carry a key, which must not stand in a record.
    """
    if isinstance(value, str) and re.fullmatch("<.*>", value):
        raise ValueError("still to be filled in (put a path or a name on the hub in its place)")
    if isinstance(value, str) and "://" in value:
        raise ValueError(
            "expected a path or a name on the hub (download what the URL names, and give its path)"
        )
    return value


class FromScratch(Section):
    """A small model with random weights and a byte-level BPE tokenizer trained on the rows themselves."""

    family: str = "qwen3"
    vocab_size: int = Field(default=4096, ge=300)
    hidden_size: int = Field(default=128, ge=16)
    layers: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _can_be_built(self) -> FromScratch:
        try:
            tiny_config(self.family, self.vocab_size, hidden_size=self.hidden_size, layers=self.layers)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self


class ModelSection(Section):
    """Which model to start from: `name` (a folder or hub name) or `from_scratch`."""

    name: str | None = Field(default=None, min_length=1)
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: str | None = None
    quantization: Literal["nf4", "fp4", "int8"] | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    append_eos: bool = False
    trust_remote_code: bool = False
    from_scratch: FromScratch | None = None

    _places = field_validator("name", "tokenizer", "chat_template", mode="before")(_place)

    @model_validator(mode="after")
    def _one_start(self) -> ModelSection:
        if (self.name is None) == (self.from_scratch is None):
            raise ValueError("give either a name or `from_scratch`")
        return self

    @model_validator(mode="after")
    def _code_is_pinned(self) -> ModelSection:
        require_pinned_kernel(self.attention)
        if self.trust_remote_code and self.name is not None:
            require_pinned(self.name, self.revision)
        return self


class DataSection(Section):
    """Where the rows are, how they are checked, and how they are shared out (by prompt, seeded)."""

    source: str = Field(min_length=1)
    split: str | None = None
    revision: str | None = None
    format: str | None = None
    validation: Literal["strict", "lenient"] = "strict"
    sft_fraction: float = Field(default=0.33, ge=0, le=1)
    eval_fraction: float = Field(default=0.02, ge=0, lt=1)
    limit: int | None = Field(default=None, ge=1)
    max_length: int = Field(default=MAX_LENGTH, ge=2)
    max_prompt_length: int | None = Field(default=None, ge=1)
    on_overflow: Literal["cut", "drop", "error"] = "cut"

    _places = field_validator("source", mode="before")(_place)

    @model_validator(mode="after")
    def _room_for_an_answer(self) -> DataSection:
        if self.max_prompt_length is not None and self.max_prompt_length >= self.max_length:
            raise ConfigError(
                f"data.max_prompt_length: {self.max_prompt_length} leaves no room for an answer in "
                f"data.max_length ({self.max_length})"
            )
        return self


class AdapterSection(Section):
    """LoRA on attention and MLP projections, and a fully trained LM head."""

    rank: int = Field(default=64, ge=1)
    alpha: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    train_head: bool = True


class RunConfig(Section):
    """A whole run: one model, one source of rows, up to two stages."""

    model: ModelSection
    data: DataSection
    adapter: AdapterSection | None = Field(default_factory=lambda: AdapterSection.model_validate({}))
    sft: dict[str, Any] | None = None
    align: dict[str, Any] | None = None
    output_dir: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

    _places = field_validator("output_dir", mode="before")(_place)

    @field_validator("model", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("sft")
    @classmethod
    def _sft_fields(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else stage_settings(value, SFTConfig, "sft")

    @field_validator("align")
    @classmethod
    def _align_fields(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else stage_settings(value, PreferenceConfig, "align")

    @model_validator(mode="after")
    def _some_stage(self) -> RunConfig:
        if self.sft is None and self.align is None:
            raise ValueError("nothing to do: give `sft`, `align` or both (`{}` for the defaults)")
        return self

    @model_validator(mode="after")
    def _quantized_under_an_adapter(self) -> RunConfig:
        if self.model.quantization is not None:
            if self.adapter is None:
                raise ConfigError(
                    f"model.quantization: {self.model.quantization} freezes the weights, so it needs an adapter"
                )
            require_quantization(self.model.quantization)
        return self

    @model_validator(mode="after")
    def _rows_for_every_stage(self) -> RunConfig:
        data = self.data
        if self.sft is not None and self.align is not None:  # else sft_fraction is not used
            if data.sft_fraction == 0:
                raise ConfigError(
                    "data.sft_fraction: 0 leaves the sft stage no rows; raise it, or leave `sft` out"
                )
            if data.sft_fraction + data.eval_fraction >= 1:
                raise ConfigError(
                    f"data.sft_fraction ({data.sft_fraction:g}) and data.eval_fraction ({data.eval_fraction:g}): "
                    "together they must stay below 1, the rest is what align trains on"
                )
        for stage, settings in (("sft", self.sft or {}), ("align", self.align or {})):
            for key in ("eval_strategy", "eval_on_start"):
                if data.eval_fraction == 0 and settings.get(key) not in (None, False, "no"):
                    raise ConfigError(
                        f"{stage}.{key}: data.eval_fraction is 0, so no rows are held out for it"
                    )
        return self

    @model_validator(mode="after")
    def _layout_serves(self) -> RunConfig:
        if self.data.format is not None:
            try:
                get_format(self.data.format, "sft" if self.align is None else "preference")
            except ConfigError as error:
                raise ConfigError(f"data.format: {error}") from error
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `key.path=value` overrides, and check everything.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (with the nearest known one), a wrong value.
    """
    raw = read_yaml(Path(path))
    for override in overrides:
        apply_override(raw, override)
    return parse_config(raw, where=str(path))


def parse_config(raw: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Check a mapping; see `load_config`."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_sentence(fault) for fault in error.errors())) from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _sentence(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    where = ".".join(location) or "the file"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key{did_you_mean(location[-1], _keys_at(location[:-1]))}"
    return f"{where}: {fault_words(fault)}"


def section_keys() -> list[str]:
    """Every key inside a section, as `data.limit`."""
    return [f"{name}.{key}" for name in ("model", "data", "adapter") for key in _keys_at([name])]


def _keys_at(location: Sequence[str]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for key in location:
        options = members(section.model_fields[key].annotation)
        section = next(
            option for option in options if isinstance(option, type) and issubclass(option, BaseModel)
        )
    return list(section.model_fields)
