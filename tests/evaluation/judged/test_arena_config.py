from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.judged.arena_config import JUDGE_SETTINGS_V01, JUDGE_V01, read_config

# of each tool's files, what tells them apart
ORIGINAL = "regex_pattern: x\nnumber_of_judgment_attempts: 2\nprompt_template: ['{question_1}']\n"
FIRST_CURRENT = "regex_pattern: x\nprompt_template: '{QUESTION} {ANSWER_A} {ANSWER_B}'\n"
CURRENT = "regex_patterns: [x, y]\nprompt_template: '{QUESTION} {ANSWER_A} {ANSWER_B}'\n"


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "judge_config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "current"), [(ORIGINAL, False), (FIRST_CURRENT, True), (CURRENT, True), ("a: 1", False)]
)
def test_whose_configuration_it_is(tmp_path: Path, text: str, current: bool) -> None:
    assert read_config(written(tmp_path, text)).current is current


def test_defaults_are_those_of_the_original() -> None:
    config = read_config(None)
    assert (config.judge, config.settings, config.attempts) == (JUDGE_V01, JUDGE_SETTINGS_V01, 2)
    assert (config.template, config.system, config.systems) == (None, None, {})


@pytest.mark.parametrize(
    ("text", "system", "systems"),
    [
        ("system_prompt: judge", "judge", {}),
        ("system_prompt: ''", "", {}),
        ("system_prompt:", None, {}),
        ("a: 1", None, {}),
        ("system_prompt: {a: x, b: ''}", None, {"a": "x", "b": ""}),
    ],
)
def test_a_system_message_for_all_or_for_each_category(
    tmp_path: Path, text: str, system: str | None, systems: dict[str, str]
) -> None:
    config = read_config(written(tmp_path, text))
    assert (config.system, config.systems) == (system, systems)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("system_prompt: 0", "'system_prompt' must be a text, or a mapping"),
        ("system_prompt: {a: 3}", "'system_prompt' must be a text, or a mapping"),
        ("system_prompt: {1: x}", "'system_prompt' must be a text, or a mapping"),
        ("prompt_template: [a, b]", "'prompt_template' must be one text"),
        ("number_of_judgment_attempts: 0", "must be a whole number from 1"),
    ],
)
def test_values_of_another_kind(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_config(written(tmp_path, text))
