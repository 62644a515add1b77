"""`holdfast sft` and `holdfast align`: one stage of a run, without a YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from holdfast.cli.quiet import quiet_libraries
from holdfast.cli.run import run_and_report
from holdfast.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from holdfast.experiments.config import RunConfig

Stage = Literal["sft", "align"]
OTHER: Mapping[Stage, Stage] = {"sft": "align", "align": "sft"}
# What a file says of its own model or rows, and means nothing for others.
OF_THE_MODEL = ("revision", "from_scratch")
OF_THE_ROWS = ("split", "revision", "format")


def run_stage(
    stage: Stage,
    model: str,
    data: str,
    overrides: Sequence[str],
    *,
    config: Path | None,
    output_dir: Path | None,
    overwrite: bool,
    resume: bool,
) -> None:
    """Check the settings, run the stage, write the report."""
    quiet_libraries()
    settings = stage_config(stage, model, data, overrides, config=config, output_dir=output_dir)
    run_and_report(settings, overwrite=overwrite, resume=resume)


def stage_config(
    stage: Stage,
    model: str,
    data: str,
    overrides: Sequence[str] = (),
    *,
    config: Path | None = None,
    output_dir: Path | None = None,
) -> RunConfig:
    """The run of one stage.

    Args:
        model: a folder or hub name.
        data: a file, folder or hub name.
        overrides: `key.path=value`; keys of the stage without its name before them too.
        config: a run's YAML, for every setting but the model, the rows, the other stage and the output folder.
        output_dir: `runs/STAGE-MODEL` by default.

    Raises:
        ConfigError: an unknown key (names the nearest) or a wrong value.
    """
    from holdfast.experiments.config import parse_config
    from holdfast.experiments.values import shown
    from holdfast.experiments.yaml_file import apply_override, read_yaml

    for name, value in (("MODEL", model), ("DATA", data)):
        if "=" in value and not Path(value).exists():
            raise ConfigError(
                f"{name} is missing: {shown(value)} is a setting; write holdfast {stage} MODEL DATA first"
            )
    raw = read_yaml(config) if config is not None else {}
    raw["model"] = _named(raw.get("model"), "name", model, OF_THE_MODEL)
    raw["data"] = _named(raw.get("data"), "source", data, OF_THE_ROWS)
    raw[stage] = {} if raw.get(stage) is None else raw[stage]
    raw.pop(OTHER[stage], None)
    raw["output_dir"] = str(output_dir or default_output_dir(stage, model))
    for override in overrides:
        apply_override(raw, full_key(stage, override))
    return parse_config(raw, where=f"holdfast {stage}" if config is None else str(config))


def default_output_dir(stage: Stage, model: str) -> Path:
    """`runs/STAGE-MODEL`, by the last part of the model's name; a run's `final/` has the run's name."""
    path = Path(model).expanduser().resolve()
    return Path("runs") / f"{stage}-{path.parent.name if path.name == 'final' else path.name}"


def full_key(stage: Stage, override: str) -> str:
    """`learning_rate=1e-6` -> `align.learning_rate=1e-6`; a full key stays as it is.

    Raises:
        ConfigError: a key that is neither (names the nearest), or one that is not to be set here.
    """
    from holdfast.experiments.config import RunConfig, section_keys
    from holdfast.experiments.stage_settings import RUN_WIDE, stage_keys
    from holdfast.objectives.registry import list_objectives, objective_class
    from holdfast.training.config import PreferenceConfig, SFTConfig

    key, equals, _ = override.partition("=")
    first = key.partition(".")[0]
    if not equals:
        raise ConfigError(f"'{override}' is not a setting; write key=value, as in learning_rate=1.0e-6")
    if key in ("model", "model.name", "data", "data.source"):
        raise ConfigError(f"{key}: is given as {first.upper()} already")
    if first == OTHER[stage]:
        raise ConfigError(f"{key}: `holdfast {stage}` has no {first} stage; `holdfast run` has both")
    if first in RunConfig.model_fields:
        return override
    config_class = SFTConfig if stage == "sft" else PreferenceConfig
    own = stage_keys(config_class)
    if first in own:
        return f"{stage}.{override}"
    elsewhere = [name for name in section_keys() if name.endswith(f".{key}")]
    elsewhere = elsewhere or [RUN_WIDE[name] for name in RUN_WIDE if name == key]
    if elsewhere:
        raise ConfigError(f"{key}: unknown key (it is written {' or '.join(elsewhere)})")
    hyperparameters = {
        f"objective.{field.name}"
        for name in list_objectives(config_class.objective_kind)
        for field in fields(objective_class(name))
    }
    known = {*RunConfig.model_fields, *section_keys(), *own, *hyperparameters} - {OTHER[stage]}
    raise ConfigError(f"{key}: unknown key{did_you_mean(key, known)}")


def _named(section: Any, key: str, value: str, own: Sequence[str]) -> dict[str, Any]:
    """A file's section with its name replaced; what holds only for the old name (`own`) goes with it."""
    settings = dict(section) if isinstance(section, Mapping) else {}
    if settings.get(key) != value:
        settings = {name: setting for name, setting in settings.items() if name not in own}
    return settings | {key: value}
