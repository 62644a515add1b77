"""The YAML of a sweep over the continuum: settings, objectives, seeds, and one budget for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from holdfast.demo.continuum_tasks import CIPHERING, KNOWN_KINDS, Setting
from holdfast.errors import ConfigError, did_you_mean
from holdfast.experiments.config import Section
from holdfast.experiments.values import fault_words
from holdfast.experiments.yaml_file import apply_override, read_yaml
from holdfast.objectives.registry import resolve_objective

Spec = dict[str, Any]


class SettingSection(Section):
    """One place on the continuum; see `continuum_tasks.Setting`."""

    kinds: list[str] = Field(min_length=1)
    wrong_share: float = Field(default=0.0, ge=0, le=1)
    wrong_kind: Literal["one", "many"] = "many"
    taste: int = Field(default=0, ge=0)

    @field_validator("kinds")
    @classmethod
    def _kinds_exist(cls, kinds: list[str]) -> list[str]:
        known = (*KNOWN_KINDS, CIPHERING)
        for kind in kinds:
            if kind not in known:
                raise ValueError(f"no family of tasks '{kind}'{did_you_mean(kind, known)}")
        return kinds

    def setting(self) -> Setting:
        """As the tasks take it."""
        return Setting(tuple(self.kinds), self.wrong_share, self.wrong_kind, self.taste)


class BaseSection(Section):
    """The model that every cell of a seed starts from: made from scratch on the known families, shown rightly."""

    hidden_size: int = Field(default=64, ge=16)
    layers: int = Field(default=2, ge=1)
    steps: int = Field(default=2500, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=4e-3, gt=0)


class TrainingSection(Section):
    """What every cell gets; a cosine schedule with warm-up over a tenth of the steps."""

    steps: int = Field(default=200, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)


class JudgingSection(Section):
    """Held-out tasks, answered once greedily and `samples` times at temperature 1."""

    tasks: int = Field(default=300, ge=1)
    samples: int = Field(default=4, ge=1)


class ContinuumConfig(Section):
    """A grid: every objective in every setting with every seed.

    Attributes:
        objectives: by the name they have in the table; null is the model as it is before training.
        paper: what arXiv 2510.00526 found against NLL, by setting and objective: "+", "-" or "0".
    """

    settings: dict[str, SettingSection] = Field(min_length=1)
    objectives: dict[str, str | Spec | None] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    output_dir: str = Field(min_length=1)
    base: BaseSection = Field(default_factory=BaseSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    judging: JudgingSection = Field(default_factory=JudgingSection)
    paper: dict[str, dict[str, Literal["+", "-", "0"]]] = Field(default_factory=dict)

    @field_validator("objectives")
    @classmethod
    def _objectives_exist(cls, given: dict[str, str | Spec | None]) -> dict[str, str | Spec | None]:
        for name, spec in given.items():
            try:
                objective = None if spec is None else resolve_objective(spec)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if objective is not None and objective.kind != "token":
                raise ValueError(f"{name}: '{objective.name}' works on pairs; the continuum is supervised")
        return given

    @model_validator(mode="after")
    def _paper_names_what_is_there(self) -> ContinuumConfig:
        for setting, signs in self.paper.items():
            if setting not in self.settings:
                raise ValueError(f"paper: no setting '{setting}'{did_you_mean(setting, self.settings)}")
            for objective in signs:
                if objective not in self.objectives:
                    raise ValueError(
                        f"paper: no objective '{objective}'{did_you_mean(objective, self.objectives)}"
                    )
        return self


def load_continuum(path: str | Path, overrides: Sequence[str] = ()) -> ContinuumConfig:
    """Read a sweep's YAML file, apply `key.path=value` overrides, and check everything.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a wrong value.
    """
    raw = read_yaml(Path(path))
    for override in overrides:
        apply_override(raw, override)
    try:
        return ContinuumConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(map(_sentence, error.errors()))) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _sentence(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    where = ".".join(location) or "the file"
    if fault["type"] != "extra_forbidden":
        return f"{where}: {fault_words(fault)}"
    sections: dict[str, type[Section]] = {
        "settings": SettingSection,
        "base": BaseSection,
        "training": TrainingSection,
        "judging": JudgingSection,
    }
    section = sections[location[0]] if len(location) > 1 else ContinuumConfig
    return f"{where}: unknown key{did_you_mean(location[-1], section.model_fields)}"
