"""The YAML that `holdfast init` writes: complete, at the defaults, and taken by a run as it stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from holdfast.errors import ConfigError
from holdfast.experiments.arguments import effective_settings, stage_arguments
from holdfast.experiments.config import FromScratch, RunConfig, load_config, parse_config, section_keys
from holdfast.experiments.stage_settings import stage_keys
from holdfast.experiments.starter import starter
from holdfast.experiments.yaml_file import read_yaml
from holdfast.objectives.registry import objective_class
from holdfast.training.config import PreferenceConfig, SFTConfig


def uncommented(text: str) -> str:
    """Every key that is commented out, no longer."""
    return re.sub(r"(?m)^( *)# (?=\w+: )", r"\1", text)


def written(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def effective(config: RunConfig, folder: Path) -> dict[str, Any]:
    """All that decides a run, defaults too."""
    stages = stage_arguments(config, folder).stages()
    own = {stage: effective_settings(args) for stage, args in stages.items()}
    return config.model_dump(exclude={"sft", "align"}) | own


@pytest.mark.parametrize("form", [str, uncommented])
def test_every_key_is_taken_and_has_its_default(form: Callable[[str], str], tmp_path: Path) -> None:
    found = load_config(written(tmp_path, form(starter("some/model", "rows.jsonl", "runs/x"))))
    bare = {"model": "some/model", "data": {"source": "rows.jsonl"}, "sft": {}, "align": {}}
    assert effective(found, tmp_path) == effective(parse_config(bare | {"output_dir": "runs/x"}), tmp_path)


def test_no_key_is_forgotten(tmp_path: Path) -> None:
    text = starter("some/model", "rows.jsonl", "runs/x")
    raw = read_yaml(written(tmp_path, uncommented(text)))
    assert raw.keys() == RunConfig.model_fields.keys()
    sections = ("model", "data", "adapter")
    assert {f"{name}.{key}" for name in sections for key in raw[name]} == set(section_keys())
    [scratch] = re.findall("# from_scratch: .*", text)
    assert all(f"{key}: " in scratch for key in FromScratch.model_fields)
    of_transformers = {field.name for field in fields(TrainingArguments)}
    for stage, config_class in (("sft", SFTConfig), ("align", PreferenceConfig)):
        assert raw[stage].keys() >= stage_keys(config_class) - of_transformers
        hyperparameters = {field.name for field in fields(objective_class(raw[stage]["objective"]["name"]))}
        assert raw[stage]["objective"].keys() - {"name", "preset"} == hyperparameters


def test_what_is_left_open_is_refused_by_its_key_and_may_be_given_later(tmp_path: Path) -> None:
    file = written(tmp_path, starter(None, None, "runs/x"))
    with pytest.raises(ConfigError) as raised:
        load_config(file)
    for key, place in (("model.name", "<MODEL>"), ("data.source", "<DATA>")):
        fault = f"{key}: still to be filled in (put a path or a name on the hub in its place), got '{place}'"
        assert fault in str(raised.value)
    assert str(raised.value).startswith(f"{file}: ")
    config = load_config(file, ["model.name=some/model", "data.source=rows.jsonl"])
    assert (config.model.name, config.data.source) == ("some/model", "rows.jsonl")


@pytest.mark.parametrize(
    "name", ["1e-6", "007", "no", "~", "a: b # c", 'say "x"\\', "two\nlines", "日本/é", "- a"]
)
def test_names_are_read_as_they_were_given(name: str, tmp_path: Path) -> None:
    config = load_config(written(tmp_path, starter(name, name, f"runs/{name}")))
    assert (config.model.name, config.data.source, config.output_dir) == (name, name, f"runs/{name}")


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("https://host/model", None, "^holdfast init: model.name: expected a path or a name on the hub"),
        ("", "rows.jsonl", "^holdfast init: model.name: "),
        ("some/model", "", "^holdfast init: data.source: "),
    ],
)
def test_names_that_no_run_takes(model: str, data: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        starter(model, data, "runs/x")
