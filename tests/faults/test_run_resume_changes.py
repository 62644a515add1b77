"""A run is not resumed as another one: what has changed is named before a model is loaded. And what may change may."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from holdfast.cli.main import app
from holdfast.errors import CheckpointError, ConfigError, HoldfastError, Interrupted
from holdfast.experiments import pipeline
from tests.faults.whole_runs import make_place, quick, rows_file, run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a start model, rows, and `run/`: a run that was stopped in its first stage."""
    place = make_place(tmp_path_factory.mktemp("runs"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "MetricsFile", Stop)
        with pytest.raises(Interrupted):
            run(quick(place, "run"))
    return place


class Stop(pipeline.MetricsFile):
    """Stops the first stage after its first step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def no_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SFTTrainer", lambda **options: pytest.fail("a trainer was made"))


def with_changes(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for path, value in changes.items():
        section, _, key = path.partition(".")
        if key:
            config[section] = {**config[section], key: value}
        else:
            config[section] = value
    return config


@pytest.mark.usefixtures("no_model_is_loaded")
@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"seed": 4}, ["seed: 3 in run, 4 now"]),
        ({"sft.learning_rate": 2e-3}, ["sft.learning_rate: 0.001 in run, 0.002 now"]),
        ({"sft.objective": "focal"}, ["sft.objective.name: 'nll' in run, 'focal' now"]),
        ({"align.max_steps": 9}, ["align.max_steps: 2 in run, 9 now"]),
        ({"align": None}, ["align: 'a stage' in run, 'no stage' now"]),
        ({"sft.per_device_train_batch_size": 2}, ["sft.global_batch_size: 9 in run, 6 now"]),
        (
            {"adapter": {"rank": 2}, "data.max_length": 65},
            ["data.max_length: 64 in run, 65 now", "adapter: null in run, {'rank': 2"],
        ),
        (
            {"data.limit": 59},
            ["the rows (data.splits.", "order): '"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_other_settings(changes: dict[str, Any], names: list[str], place: Path) -> None:
    before = (place / "run" / "run.json").read_bytes()
    with pytest.raises(CheckpointError) as refused:
        run(with_changes(quick(place, "run"), changes), resume=True)
    for name in names:
        assert name in str(refused.value)
    assert "Put back what has changed" in str(refused.value)
    assert (place / "run" / "run.json").read_bytes() == before


@pytest.mark.usefixtures("no_model_is_loaded")
@pytest.mark.parametrize("what", ["rows", "order", "template", "weights"])
def test_other_files_under_the_same_names(what: str, place: Path, tmp_path: Path) -> None:
    for name in ("run", "start"):
        shutil.copytree(place / name, tmp_path / name)
    shutil.copy(place / "rows.jsonl", tmp_path)
    config = quick(place, "", output_dir=str(tmp_path / "run"), model=str(tmp_path / "start"))
    config["data"] = config["data"] | {"source": str(tmp_path / "rows.jsonl")}
    if what == "rows":
        rows_file(tmp_path / "rows.jsonl", 61)
        name = "the rows (data.splits."
    elif what == "order":
        lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "rows.jsonl").write_text("".join(reversed(lines)))
        name = "the rows (data.splits.align.order)"
    elif what == "template":
        template = tmp_path / "start" / "chat_template.jinja"
        template.write_text("\n" + template.read_text())
        name = "the tokenizer or its chat template (data.tokenizer)"
    else:
        weights = tmp_path / "start" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x3d")
        name = "the model to start from (start.digest)"
    with pytest.raises(HoldfastError) as refused:
        run(config, resume=True)
    assert name in str(refused.value)


def test_what_may_change(place: Path, tmp_path: Path) -> None:
    """The folder, the rows and the model have moved; other logging and saving; the global batch is cut otherwise."""
    for name in ("run", "start"):
        shutil.copytree(place / name, tmp_path / f"moved-{name}")
    shutil.copy(place / "rows.jsonl", tmp_path / "moved.jsonl")
    changes = {
        "output_dir": str(tmp_path / "moved-run"),
        "model": str(tmp_path / "moved-start"),
        "data.source": str(tmp_path / "moved.jsonl"),
        "sft.logging_steps": 2,
        "sft.save_steps": 1,
        "sft.save_total_limit": 1,
        "sft.per_device_train_batch_size": 9,
        "sft.gradient_accumulation_steps": 1,
        "align.disable_tqdm": True,
        "align.run_name": "another",
    }
    folder = run(with_changes(quick(place, ""), changes), resume=True)
    record = json.loads((folder / "run.json").read_text())
    assert record["finished"]
    assert record["config"]["sft"]["save_total_limit"] == 1
    assert record["settings"]["sft"]["per_device_train_batch_size"] == 9
    assert len(record["resumed"]) == 1
    assert [path.name for path in (folder / "sft").glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_model_from_scratch_is_made_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was made is used again, if it is still the same."""
    scratch = {"from_scratch": {"vocab_size": 320, "hidden_size": 32, "layers": 2}}
    config = quick(place, "", output_dir=str(tmp_path / "run"), model=scratch, align=None)
    weights = tmp_path / "run" / "start" / "model.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "MetricsFile", Stop)
        with pytest.raises(Interrupted):
            run(config)
    monkeypatch.setattr(pipeline, "tiny_model", lambda *args, **options: pytest.fail("made again"))
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="the model to start from"):
        run(config, resume=True)
    weights.write_bytes(before)
    run(config, resume=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


@pytest.mark.usefixtures("no_model_is_loaded")
def test_no_row_to_evaluate_on(place: Path, tmp_path: Path) -> None:
    config = quick(place, "", output_dir=str(tmp_path / "run"))
    config["data"] |= {"eval_fraction": 1e-6}
    config["sft"] |= {"eval_strategy": "steps"}
    with pytest.raises(
        ConfigError, match="sft.eval_strategy: no row is held out .* raise data.eval_fraction"
    ):
        run(config)
    assert not (tmp_path / "run").exists()


def test_one_stage_from_the_command_line(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`holdfast sft ... --resume` goes on like `holdfast run`."""
    monkeypatch.chdir(tmp_path)
    settings = "max_steps=3 per_device_train_batch_size=4 use_cpu=true disable_tqdm=true adapter=null".split()
    command = ["sft", str(place / "start"), str(place / "rows.jsonl"), *settings, "-o", "out", "--resume"]
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "MetricsFile", Stop)
        stopped = CliRunner().invoke(app, command)
    assert isinstance(stopped.exception, Interrupted)
    assert (tmp_path / "out" / "sft" / "checkpoint-1").is_dir()
    with pytest.raises(CheckpointError, match="sft.learning_rate"):
        CliRunner().invoke(app, [*command, "learning_rate=1"], catch_exceptions=False)
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "out" / "report.html").is_file()
    again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert (again.exit_code, "nothing is left to do" in again.stdout) == (0, True)


def test_the_settings_of_every_stage_stand_in_the_record(place: Path) -> None:
    record = json.loads((place / "run" / "run.json").read_text())
    for stage in ("sft", "align"):
        found = record["settings"][stage]
        assert (found["learning_rate"], found["save_total_limit"], found["weight_decay"]) == (1e-3, 2, 0.0)
    assert yaml.safe_load(yaml.safe_dump(record["config"]))["seed"] == 3
    assert record["start"]["digest"]
