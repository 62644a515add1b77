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

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from holdfast.errors import ConfigError, did_you_mean
from holdfast.objectives.registry import objective_spec, resolve_objective
from holdfast.training.config import LeanConfig, PreferenceConfig, SFTConfig


class Section(BaseModel):
    """A part of the file. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FromScratch(Section):
    """A small model with random weights and a byte-level BPE tokenizer trained on the rows themselves."""

    family: str = "qwen3"
    vocab_size: int = Field(default=4096, ge=300)
    hidden_size: int = Field(default=128, ge=16)
    layers: int = Field(default=4, ge=1)


class ModelSection(Section):
    """Which model to start from: `name` (a folder or hub name) or `from_scratch`."""

    name: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: str | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    append_eos: bool = False
    from_scratch: FromScratch | None = None

    @model_validator(mode="after")
    def _one_start(self) -> ModelSection:
        if (self.name is None) == (self.from_scratch is None):
            raise ValueError("give either a name or `from_scratch`")
        return self


class DataSection(Section):
    """Where the rows are, how they are checked, and how they are shared out (by prompt, seeded)."""

    source: str
    split: str | None = None
    revision: str | None = None
    format: str | None = None
    validation: Literal["strict", "lenient"] = "strict"
    sft_fraction: float = Field(default=0.33, ge=0, le=1)
    eval_fraction: float = Field(default=0.02, ge=0, lt=1)
    limit: int | None = Field(default=None, ge=1)
    max_length: int = Field(default=1024, ge=2)
    max_prompt_length: int | None = Field(default=None, ge=1)
    on_overflow: Literal["cut", "drop", "error"] = "cut"

    @model_validator(mode="after")
    def _fractions_fit(self) -> DataSection:
        if self.sft_fraction + self.eval_fraction > 1:
            raise ValueError("sft_fraction and eval_fraction exceed 1 together")
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
    output_dir: str
    seed: int = 0

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
    "chat_template": "model.chat_template",
    "append_eos": "model.append_eos",
}


SECRETS = frozenset({"hub_token", "push_to_hub_token"})


def stage_settings(settings: Mapping[str, Any], config_class: type[LeanConfig], stage: str) -> dict[str, Any]:
    """Check a stage's keys and values against the trainer's config class, and its objective against the registry."""
    types = get_type_hints(config_class)
    known = {field.name for field in dataclasses.fields(config_class)}
    checked = {}
    for key, value in settings.items():
        if key in RUN_WIDE:
            raise ConfigError(f"{stage}.{key}: is set for the whole run, as `{RUN_WIDE[key]}`")
        if key in SECRETS:
            raise ConfigError(
                f"{stage}.{key}: a secret would stand in run.json; log in, or set HF_TOKEN, instead"
            )
        if key not in known:
            raise ConfigError(f"{stage}.{key}: unknown key{did_you_mean(key, known - RUN_WIDE.keys())}")
        checked[key] = value if key == "objective" else _value(value, types[key], f"{stage}.{key}")
    default = next(field.default for field in dataclasses.fields(config_class) if field.name == "objective")
    spec = checked.get("objective", default)
    try:
        objective = resolve_objective({"name": default} | spec if isinstance(spec, dict) else spec)
    except ValueError as error:
        raise ConfigError(f"{stage}.objective: {error}") from error
    if objective.kind != config_class.objective_kind:
        raise ConfigError(
            f"{stage}.objective: '{objective.name}' is a {objective.kind} objective; this stage takes a "
            f"{config_class.objective_kind} objective (see `holdfast explain`)"
        )
    return checked | {"objective": dict(objective_spec(objective))}


def _value(value: Any, annotation: Any, where: str) -> Any:
    """`value` as its field's type; `1e-4`, which YAML reads as text, becomes the number it means."""
    if isinstance(value, bool) and annotation in (int, float):
        raise ConfigError(f"{where}: expected a number, got {str(value).lower()}")
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{where}: {error.errors()[0]['msg']}, got {value!r}") from error


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `key.path=value` overrides, and check everything.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (with the nearest known one), a wrong value.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file '{path}'")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML in UTF-8: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys such as `model`, `data`, `align` at the top")
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


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in place; the value is read as YAML.

    `align.objective.hard_margin=1.2` works on a bare name too: `objective: slime` becomes a mapping first.
    """
    path, equals, value = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"'{override}' is not an override; write key=value, as in align.learning_rate=1.0e-6"
        )
    node = raw
    for depth, key in enumerate(keys[:-1]):
        child = node.get(key)
        if child is None:
            child = {}
        elif isinstance(child, str) and key in ("objective", "model"):
            child = {"name": child}
        elif not isinstance(child, dict):
            raise ConfigError(f"'{override}': '{'.'.join(keys[: depth + 1])}' is a value, not a section")
        node[key] = child
        node = child
    try:
        node[keys[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"'{override}': the value is not valid YAML") from error


def _sentence(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    where = ".".join(location) or "the file"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key{did_you_mean(location[-1], _keys_at(location[:-1]))}"
    if fault["type"] == "missing":
        return f"{where}: missing"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}"


def _keys_at(location: Sequence[str]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for key in location:
        annotation = section.model_fields[key].annotation
        options = getattr(annotation, "__args__", (annotation,))
        section = next(
            option for option in options if isinstance(option, type) and issubclass(option, BaseModel)
        )
    return list(section.model_fields)
