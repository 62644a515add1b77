"""`holdfast sft` and `holdfast align`: which run they make of their arguments, and that it runs to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from typer.testing import CliRunner

from holdfast.cli.main import app
from holdfast.cli.stage import OTHER, Stage, default_output_dir, full_key, stage_config
from holdfast.errors import ConfigError, Interrupted
from holdfast.experiments.config import RunConfig, parse_config
from holdfast.experiments.stage_settings import stage_keys
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model
from holdfast.training.config import PreferenceConfig, SFTConfig
from tests.training.conftest import WORDS, rows

QUICK = "max_steps=2 per_device_train_batch_size=4 logging_steps=1 use_cpu=true disable_tqdm=true".split()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model."""
    folder = tmp_path_factory.mktemp("models") / "start"
    tokenizer: PreTrainedTokenizerBase = tiny_bpe_tokenizer([" ".join(WORDS)] * 3, 320)
    model = tiny_model(
        "qwen3",
        len(tokenizer),
        hidden_size=32,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of preference rows in the current directory."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(20)), encoding="utf-8")
    return file


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("stage", "settings", "objective"),
    [
        ("sft", ["objective=focal", "learning_rate=1e-3"], "focal"),
        ("align", ["objective.hard_margin=1.2", "align.learning_rate=1e-3"], "slime"),
    ],
)
def test_one_stage_runs_to_the_report(
    stage: Stage, settings: list[str], objective: str, start: Path, pairs: Path
) -> None:
    shares = ["data.eval_fraction=0.25", "data.max_length=64", "adapter=null"]
    said = invoke(stage, str(start), "pairs.jsonl", *QUICK, *settings, *shares)
    folder = Path("runs") / f"{stage}-start"
    assert f"report: {folder / 'report.html'}" in said
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["settings"][stage]["adam_beta2"] == 0.999
    assert "adam_beta2" not in page  # the defaults of a hundred settings stand in the record alone
    assert list(record["stages"]) == [stage]
    assert record["stages"][stage]["steps"] == 2
    assert record["config"][OTHER[stage]] is None
    assert record["config"][stage]["objective"]["name"] == objective
    assert record["config"][stage]["learning_rate"] == 1e-3
    sides = record["data"]["splits"]
    assert set(sides) == {stage, "held_out"}  # all that is not held out is this stage's
    assert sides[stage]["rows"] + sides["held_out"]["rows"] == 20
    before = AutoModelForCausalLM.from_pretrained(start).state_dict()
    after = AutoModelForCausalLM.from_pretrained(folder / "final").state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_files_settings_are_used(start: Path, pairs: Path) -> None:
    stage = {"max_steps": 1, "use_cpu": True, "disable_tqdm": True, "objective": "simpo"}
    file = {
        "model": {"from_scratch": {"vocab_size": 320}},
        "data": {"source": "nowhere.jsonl", "max_length": 48, "eval_fraction": 0.25},
        "adapter": {"rank": 4, "alpha": 8},
        "sft": {"learning_rate": "not even looked at"},
        "align": stage,
        "output_dir": "of-another-run",
    }
    Path("run.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
    invoke("align", str(start), "pairs.jsonl", "max_steps=2", "-c", "run.yaml", "-o", "out")
    config = json.loads(Path("out/run.json").read_text(encoding="utf-8"))["config"]
    assert config["sft"] is None
    assert (config["align"]["max_steps"], config["align"]["objective"]["name"]) == (2, "simpo")
    assert (config["data"]["max_length"], config["adapter"]["rank"]) == (48, 4)
    assert not Path("of-another-run").exists()
    arguments = ["align", str(start), "pairs.jsonl", "-c", "run.yaml", "-o", "out"]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, ConfigError)
    assert "--overwrite" in str(refused.exception)
    invoke(*arguments, "--overwrite")
    assert Path("out.before-1/run.json").is_file()


def test_the_run_is_the_one_that_yaml_would_make() -> None:
    made = stage_config(
        "align",
        "some/model",
        "some/rows",
        ["learning_rate=1e-6", "objective=dpo", "data.max_length=2048", "adapter=null", "seed=3"],
    )
    assert made == parse_config(
        {
            "model": "some/model",
            "data": {"source": "some/rows", "max_length": 2048},
            "adapter": None,
            "align": {"learning_rate": 1e-6, "objective": "dpo"},
            "output_dir": "runs/align-model",
            "seed": 3,
        }
    )
    assert stage_config("sft", "m", "d") == parse_config(
        {"model": "m", "data": {"source": "d"}, "sft": {}, "output_dir": "runs/sft-m"}
    )


def test_what_a_file_says_of_its_own_model_and_rows_goes_with_them(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    model = {"name": "its/model", "revision": "v1", "dtype": "float32"}
    data = {"source": "its/rows", "split": "train", "format": "alpaca", "limit": 5}
    file.write_text(yaml.safe_dump({"model": model, "data": data, "sft": None}), encoding="utf-8")
    other = stage_config("sft", "my/model", "my/rows", ["data.split=mine"], config=file)
    assert (other.model.name, other.model.revision, other.model.dtype) == ("my/model", None, "float32")
    assert (other.data.split, other.data.format, other.data.limit) == ("mine", None, 5)
    same = stage_config("sft", "its/model", "its/rows", config=file)
    assert (same.model.revision, same.data.split, same.data.format) == ("v1", "train", "alpaca")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen3-4B-Base", "align-Qwen3-4B-Base"),
        ("gpt2", "align-gpt2"),
        ("models/mine/", "align-mine"),
        ("runs/sft-mine/final", "align-sft-mine"),
        ("models/../other/.", "align-other"),
    ],
)
def test_the_output_folder_has_the_models_name(model: str, name: str) -> None:
    assert default_output_dir("align", model) == Path("runs") / name


@pytest.mark.parametrize(("stage", "config_class"), [("sft", SFTConfig), ("align", PreferenceConfig)])
def test_every_key_of_the_stage_may_go_without_its_prefix(stage: Stage, config_class: Any) -> None:
    for key in stage_keys(config_class):
        assert full_key(stage, f"{key}=a.b=c") == f"{stage}.{key}=a.b=c"
        assert full_key(stage, f"{stage}.{key}=1") == f"{stage}.{key}=1"
    assert not stage_keys(config_class) & RunConfig.model_fields.keys()
    for whole in ("seed=1", "adapter=null", "output_dir=x", "data.limit=3", "model.dtype=float32"):
        assert full_key(stage, whole) == whole


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rat=1", "learning_rat: unknown key (did you mean 'learning_rate'?)"),
        ("adaptr=null", "(did you mean 'adapter'?)"),
        ("hard_margin=1", "(did you mean 'objective.hard_margin'?)"),
        ("rank=8", "rank: unknown key (it is written adapter.rank)"),
        ("max_length=8", "(it is written data.max_length)"),
        ("model_dtype=float32", "(it is written model.dtype)"),
        ("revision=x", "(it is written model.revision or data.revision)"),
        ("sft.max_steps=1", "`holdfast align` has no sft stage"),
        ("sft=null", "`holdfast align` has no sft stage"),
        ("model=x", "model: is given as MODEL already"),
        ("data.source=x", "data.source: is given as DATA already"),
        ("learning_rate", "'learning_rate' is not a setting; write key=value"),
    ],
)
def test_keys_that_are_none(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        full_key("align", override)
    assert message in str(raised.value)


def test_faults_name_the_full_key() -> None:
    for override, message in (
        ("learning_rate=-1", "holdfast align: align.learning_rate: must be greater"),
        ("objective=dppo", "holdfast align: align.objective: .*'dpo'"),
        ("data.max_lenth=1", "holdfast align: data.max_lenth: .*'max_length'"),
    ):
        with pytest.raises(ConfigError, match=message):
            stage_config("align", "m", "d", [override])
    with pytest.raises(ConfigError, match="DATA is missing: 'seed=1' is a setting"):
        stage_config("align", "m", "seed=1")


def test_an_interruption_keeps_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.experiments.pipeline.run", stopped)
    result = CliRunner().invoke(app, ["sft", "m", "d"])
    assert isinstance(result.exception, Interrupted)
    assert result.exception.exit_code == 130


@pytest.mark.parametrize("stage", ["sft", "align"])
def test_help_has_an_example(stage: str) -> None:
    said = invoke(stage, "--help")
    assert f"Example: holdfast {stage}" in said
    assert all(part in said for part in ("MODEL", "DATA", "KEY=VALUE", "learning_rate=1e-6", "LoRA"))
