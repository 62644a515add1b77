"""`holdfast init`: what it writes, what it says to do next, and what it leaves alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase
from typer.testing import CliRunner

from holdfast.cli.main import app, main
from holdfast.errors import ConfigError
from holdfast.experiments.config import load_config
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model
from tests.training.conftest import WORDS, rows


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_run_would_start_from_the_file_as_it_stands() -> None:
    tokenizer: PreTrainedTokenizerBase = tiny_bpe_tokenizer([" ".join(WORDS)] * 3, 320)
    tiny_model("qwen3", len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained("start")
    tokenizer.save_pretrained("start")
    Path("my pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(100)), encoding="utf-8")
    said = invoke("init", "runs of mine/a.yaml", "--model", "start", "--data", "my pairs.jsonl")
    assert said.splitlines() == [
        "written: runs of mine/a.yaml",
        "next:",
        "  holdfast check 'my pairs.jsonl' --model start",
        "  holdfast run 'runs of mine/a.yaml' --dry-run",
        "  holdfast run 'runs of mine/a.yaml'",
    ]
    planned = invoke("run", "runs of mine/a.yaml", "--dry-run")
    assert "output_dir: runs/a" in planned


def test_without_names_it_says_what_to_fill_in() -> None:
    assert "  fill in <MODEL> and <DATA> in holdfast.yaml\n" in invoke("init")
    with pytest.raises(ConfigError, match="holdfast.yaml: model.name: still to be filled in"):
        load_config("holdfast.yaml")
    assert "  fill in <DATA> in b.yml\n  holdfast check DATA --model m\n" in invoke(
        "init", "b.yml", "--model", "m"
    )


def test_a_file_that_is_there_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("holdfast.yaml").write_text("mine", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["holdfast", "init"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "'holdfast.yaml' is there already" in said
    assert "holdfast init holdfast-2.yaml" in said
    assert Path("holdfast.yaml").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("some/model", "'some/model': the file's name must end in .yaml .a model is given by --model"),
        ("taken/a.yaml", "'taken/a.yaml' cannot be written: "),
    ],
)
def test_a_file_that_cannot_be(file: str, message: str) -> None:
    Path("taken").write_text("a file, no folder", encoding="utf-8")
    result = CliRunner().invoke(app, ["init", file, "--model", "m", "--data", "d"])
    assert isinstance(result.exception, ConfigError)
    with pytest.raises(ConfigError, match=message):
        raise result.exception
    assert [path.name for path in Path().iterdir()] == ["taken"]
