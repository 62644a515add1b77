"""The pilot of `holdfast probe`: its settings, its trainings, and the file to paste that they settle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yaml

from holdfast.errors import ConfigError

if TYPE_CHECKING:
    from holdfast.capability.report import CapabilityReport
    from holdfast.experiments.config import RunConfig

# Keys of a run that are options here.
OPTIONS = {
    "seed": "--seed",
    "output_dir": "--output-dir",
    "sft.max_steps": "--pilot",
    "sft.train_on": "--train-on",
    "model.chat_template": "--chat-template",
    "model.append_eos": "--append-eos",
    "data.limit": "--rows",
    "data.max_length": "--max-length",
    "data.max_prompt_length": "--max-prompt-length",
    "data.on_overflow": "--on-overflow",
    "data.validation": "--validation",
    "data.format": "--format",
    "data.split": "--split",
    "data.revision": "--revision",
}
# What a pilot takes of a run's `model` section.
OF_THE_MODEL = ("revision", "tokenizer", "dtype", "attention", "quantization")


def pilot_config(model: str, data: str, settings: Sequence[str]) -> RunConfig:
    """The pilot's settings, as `holdfast sft` reads them.

    Raises:
        ConfigError: an unknown key or a wrong value; a key that is an option here, that the pilot settles, or that has
            no effect in one.
    """
    from holdfast.capability.pilot import WITHOUT_EFFECT
    from holdfast.cli.stage import full_key, stage_config

    for setting in settings:
        whole = full_key("sft", setting).partition("=")[0]
        section, _, key = whole.partition(".")
        first = key.partition(".")[0]
        if section == "sft" and first == "objective":
            raise ConfigError("objective: the pilot compares several; leave it out")
        taken = {"sft": first not in WITHOUT_EFFECT, "adapter": True, "model": first in OF_THE_MODEL}
        if not taken.get(section, False):
            option = OPTIONS.get(f"{section}.{first}" if first else section)
            where = f"here it is the option {option}" if option else "leave it out"
            raise ConfigError(f"{setting.partition('=')[0]}: is no setting of a pilot; {where}")
    return stage_config("sft", model, data, settings)


def with_pilot(
    report: CapabilityReport,
    config: RunConfig,
    data: str,
    options: Mapping[str, Any],
    *,
    seed: int,
    **how: Any,
) -> CapabilityReport:
    """The report with a pilot, and what that settles: the file to paste has the pilot's settings."""
    from holdfast.capability.demonstrations import RowSettings, take_in_demonstrations
    from holdfast.capability.pilot import pilot
    from holdfast.capability.recommendation import settle
    from holdfast.models.loading import load_tokenizer, vocabulary_of

    name = config.model.name
    assert name is not None  # given as MODEL
    tokenizer = load_tokenizer(
        config.model.tokenizer or name,
        revision=None if config.model.tokenizer else config.model.revision,
        chat_template=options["chat_template"],
    )
    of_the_model = {
        "model_dtype": config.model.dtype,
        "model_revision": config.model.revision,
        "attention": config.model.attention,
        "quantization": config.model.quantization,
    }
    of_the_stage = {key: value for key, value in (config.sft or {}).items() if key != "objective"}
    settings = {"max_length": options["max_length"]} | of_the_model | of_the_stage
    intake = take_in_demonstrations(
        data,
        tokenizer,
        RowSettings(**options),
        vocab_size=vocabulary_of(name, revision=config.model.revision),
        seed=seed,
    )
    found = pilot(
        name,
        tokenizer,
        intake,
        settings={key: value for key, value in settings.items() if value is not None},
        adapter=config.adapter.model_dump() if config.adapter is not None else None,
        seed=seed,
        **how,
    )
    run = piloted_run(yaml.safe_load(report.recommendation.yaml), config, seed)
    return replace(report, pilot=found, recommendation=settle(report.recommendation, found, run))


def piloted_run(run: Mapping[str, Any], config: RunConfig, seed: int) -> dict[str, Any]:
    """A run's file with the settings of the pilot, but for its number of steps: what the pilot measured."""
    model = run["model"] if isinstance(run["model"], Mapping) else {"name": run["model"]}
    of_the_model = config.model.model_dump(include=set(OF_THE_MODEL), exclude_unset=True)
    of_the_stage = {key: value for key, value in (config.sft or {}).items() if key != "objective"}
    return {
        "model": {**model, **of_the_model},
        "data": run["data"],
        "adapter": config.adapter.model_dump() if config.adapter is not None else None,
        "sft": {**run["sft"], **of_the_stage},
        "output_dir": run["output_dir"],
        "seed": seed,
    }
