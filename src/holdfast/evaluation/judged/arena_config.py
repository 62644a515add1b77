"""The configuration of Arena-Hard's judge: `judge_config.yaml` of the original, and the file of the current tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from holdfast.errors import DataError
from holdfast.evaluation.answers.client_settings import Settings

JUDGE_V01 = "gpt-4-1106-preview"
JUDGE_SETTINGS_V01 = Settings(temperature=0.0, max_tokens=4096)
ATTEMPTS = 2  # of a judge that gives no label, by the original v0.1
CONFIG_FILES = ("judge_config.yaml", "config/judge_config.yaml", "config/arena-hard-v2.0.yaml", "config.yaml")


@dataclass(frozen=True)
class JudgeConfig:
    """What a configuration says; the defaults of v0.1 for what it does not.

    Attributes:
        file: it stands in; None where there is none.
        current: it is of the tool since April 2025, by its `regex_patterns` or, in its first files, its template.
        template: of the judge's user message; None: it has none.
        system: the judge's system message for every question, empty for none; None: it has none, or `systems`.
        systems: the same by category.
        judge, settings: who judges.
        attempts: how often a judge without a label is asked.
    """

    file: Path | None
    current: bool
    template: str | None
    system: str | None
    systems: Mapping[str, str]
    judge: str
    settings: Settings
    attempts: int


def read_config(file: Path | None) -> JudgeConfig:
    """The configuration in a file; the defaults without one.

    Raises:
        DataError: it is no YAML, or a value is of another kind.
    """
    config = {} if file is None else _read(file)
    template = config.get("prompt_template")
    if isinstance(template, list) and len(template) == 1:
        template = template[0]
    if template is not None and not isinstance(template, str):
        raise DataError(f"'{file}': 'prompt_template' must be one text")
    system = config.get("system_prompt")
    systems = system if isinstance(system, dict) else {}
    texts = [*systems, *systems.values()]
    if not isinstance(system, dict | str | None) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"'{file}': 'system_prompt' must be a text, or a mapping of categories to texts")
    return JudgeConfig(
        file=file,
        current="regex_patterns" in config or "{QUESTION}" in (template or ""),
        template=template,
        system=None if isinstance(system, dict) else system,
        systems=systems,
        judge=str(config.get("judge_model", JUDGE_V01)),
        settings=_settings(file, config),
        attempts=_whole(file, config, "number_of_judgment_attempts", ATTEMPTS),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"'{file}': cannot be read as YAML ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"'{file}': must be a mapping of settings")
    return found


def _settings(file: Path | None, config: Mapping[str, Any]) -> Settings:
    temperature = config.get("temperature", JUDGE_SETTINGS_V01.temperature)
    if (
        isinstance(temperature, bool)
        or not isinstance(temperature, int | float)
        or not 0 <= temperature < 100
    ):
        raise DataError(f"'{file}': 'temperature' must be a number from 0, not {temperature!r}")
    tokens = _whole(file, config, "max_tokens", JUDGE_SETTINGS_V01.max_tokens)
    return Settings(temperature=float(temperature), max_tokens=tokens)


def _whole(file: Path | None, config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
        raise DataError(f"'{file}': '{key}' must be a whole number from 1, not {value!r}")
    return value
